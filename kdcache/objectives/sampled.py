"""Losses that are linear in the teacher's probabilities, on an unbiased estimate of them.

`SampledLogits` hold weights w with E[w] = p_T. In -sum w log q_T they stand once, so value and gradient, q_T - w by the
softened logits, are unbiased too (random sampling KD, Anshumann et al. 2025). A loss with p in a logarithm or quotient
is not: its mean over the draws is another loss. Those are refused.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kdcache.codecs import SampledLogits
from kdcache.errors import UsageError
from kdcache.objectives.buckets import student_buckets
from kdcache.objectives.matching import check_rows, check_temperature, row_mean

__all__ = ["not_sampled", "sampled_cross_entropy", "sampled_entropy"]


def sampled_cross_entropy(student: Tensor, targets: SampledLogits, temperature: float) -> Tensor:
    """-sum w log q_T: mean over rows, without T^2. UsageError unless T is the stored one."""
    check_temperature(temperature)
    check_rows(student, targets)
    if temperature != targets.temperature:
        raise UsageError(
            f"temperature = {temperature:g}: these targets are draws from the teacher at T = {targets.temperature:g} "
            f"and serve that one alone: set temperature = {targets.temperature:g}, or dump the field with "
            f'temperature = {temperature:g}, or with codec = "topk" or "lowrank", which serve others'
        )
    valid = targets.weights > 0
    first = targets.indices.gather(1, targets.weights.argmax(dim=1, keepdim=True))
    log_q = student_buckets(student, torch.where(valid, targets.indices, first), valid, temperature)[:, :-1]
    return -row_mean(torch.where(valid, targets.weights * log_q, 0))


def sampled_entropy(targets: SampledLogits) -> Tensor:
    """-sum w log w, nats: mean over rows. It is below the teacher's own: the tail is thinned out."""
    return -row_mean(torch.xlogy(targets.weights, targets.weights))


def not_sampled(name: str, reason: str) -> UsageError:
    """The refusal of a loss that is not linear in the teacher's probabilities."""
    return UsageError(
        f"{name}: {reason}, and these targets are random draws, unbiased only where the teacher's probabilities "
        'stand once and alone: take kd or soft_ce, or dump the field with codec = "topk" or "lowrank"'
    )
