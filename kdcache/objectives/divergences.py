"""Divergences between the softened distributions other than `kd`: reverse KL, skew KL, generalised Jensen-Shannon.

Operands, types and reduction as in `response`. None is linear in the teacher's probabilities, so all refuse
`SampledLogits`: reverse KL is infinite where a class was not drawn, and the mixtures of the other two are biased.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from kdcache.codecs import SampledLogits, Targets
from kdcache.errors import UsageError
from kdcache.objectives.buckets import softened
from kdcache.objectives.matching import row_mean
from kdcache.objectives.sampled import not_sampled

__all__ = ["check_share", "jsd", "reverse_kl", "skew_kl"]


def reverse_kl(student: Tensor, targets: Targets, *, temperature: float = 1.0) -> Tensor:
    """T^2 KL(q_T || p_T) in nats, q_T = softmax(student / T), p_T = softmax(teacher / T): mean over rows.

    MiniLLM (Gu et al. 2024, eq. 1) and GKD (Agarwal et al. 2024, section 2), on the stored inputs rather than on the
    student's own samples; T^2 as in `kd`, on the value and on the gradient. On sparse targets it is that of the kept
    classes and the tail, which is at most the full one.
    """
    if isinstance(targets, SampledLogits):
        raise not_sampled("reverse_kl", "it needs the logarithm of every probability that the teacher gave")
    log_q, log_p = softened(student, targets, temperature)
    return temperature**2 * row_mean(log_q.exp() * (log_q - log_p))


def jsd(student: Tensor, targets: Targets, *, temperature: float = 1.0, beta: float = 0.5) -> Tensor:
    """T^2 (beta KL(p_T || m) + (1 - beta) KL(q_T || m)), m = beta p_T + (1 - beta) q_T, nats: mean over rows.

    The generalised Jensen-Shannon divergence of GKD (Agarwal et al. 2024, eq. 1), T^2 as in `kd`. beta is the
    teacher's share of the mixture, 0 < beta < 1; jsd / beta tends to `kd` as beta -> 0 and jsd / (1 - beta) to
    `reverse_kl` as beta -> 1. 0.5 is symmetric, and at most T^2 log 2. On sparse targets as `reverse_kl`.
    """
    check_share(beta)
    if isinstance(targets, SampledLogits):
        raise not_sampled("jsd", "it mixes the teacher's probabilities with the student's inside a logarithm")
    log_q, log_p = softened(student, targets, temperature)
    log_m = torch.logaddexp(log_p + math.log(beta), log_q + math.log1p(-beta))
    teacher, learner = log_p.exp() * (log_p - log_m), log_q.exp() * (log_q - log_m)
    return temperature**2 * row_mean(beta * teacher + (1 - beta) * learner)


def skew_kl(student: Tensor, targets: Targets, *, temperature: float = 1.0, alpha: float = 0.1) -> Tensor:
    """T^2 KL(p_T || m) in nats, m = alpha p_T + (1 - alpha) q_T: mean over rows.

    The alpha-skew of the FORWARD divergence, SKL of DistiLLM (Ko et al. 2024, section 3.1), on the stored inputs rather
    than on the student's own samples; not its SRKL, which skews `reverse_kl`. T^2 as in `kd`. alpha is the teacher's
    share of the mixture, 0 < alpha < 1, 0.1 in the paper; the value is at most -T^2 log alpha, also where the student
    gives nothing to a class that the teacher has. It tends to `kd` as alpha -> 0. The authors' code leaves out the
    teacher's own entropy, so that its value, not its gradient, is another. On sparse targets as `reverse_kl`.
    """
    if not 0 < alpha < 1:
        raise UsageError(
            f"skew_kl: alpha = {alpha} is the teacher's share of the mixture, above 0 and below 1; "
            "for alpha -> 0 take kd"
        )
    if isinstance(targets, SampledLogits):
        raise not_sampled("skew_kl", "it mixes the teacher's probabilities with the student's inside a logarithm")
    log_q, log_p = softened(student, targets, temperature)
    log_m = torch.logaddexp(log_p + math.log(alpha), log_q + math.log1p(-alpha))
    p = log_p.exp()
    return temperature**2 * row_mean(torch.where(p != 0, p * (log_p - log_m), 0))


def check_share(beta: float) -> None:
    """UsageError unless 0 < beta < 1."""
    if not 0 < beta < 1:
        raise UsageError(
            f"jsd: beta = {beta} is the teacher's share of the mixture, above 0 and below 1; "
            "for the ends take kd (beta -> 0) or reverse_kl (beta -> 1)"
        )
