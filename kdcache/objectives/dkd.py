"""Decoupled knowledge distillation: what the teacher says of the labelled class, and of the others among themselves."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from kdcache.codecs import SampledLogits, SparseLogits, Targets
from kdcache.errors import UsageError
from kdcache.objectives.buckets import NOTHING, softened, student_buckets, valid_slots
from kdcache.objectives.matching import check_label, check_rows, check_temperature
from kdcache.objectives.sampled import not_sampled

__all__ = ["dkd"]


def dkd(
    student: Tensor,
    targets: Targets,
    label: Tensor,
    *,
    temperature: float = 1.0,
    alpha: float = 1.0,
    beta: float = 8.0,
) -> Tensor:
    """T^2 (alpha TCKD + beta NCKD) in nats: mean over the LABELLED rows of the batch, 0 if there is none.

    Zhao et al. 2022, eq. 7. TCKD = KL of (p_t, 1 - p_t) from the student's, t the label; NCKD = KL between the
    distributions over the other classes, each renormalised to 1; all at T. alpha = 1, beta = 8 are the paper's for
    CIFAR-100; with alpha = 1 and beta = 1 - p_t of the row it would be `kd`. T^2 as in `kd`, on both parts.

    label int64 (or int32) [B], -1 = unlabelled. On `SparseLogits` the tail is one class. A label in the tail gets the
    teacher's average there (tail mass / classes in the tail) and leaves the rest of the tail its class; the student's
    share is exact. `SampledLogits` are refused: NCKD divides by 1 - p_t.
    """
    for key, value in (("alpha", alpha), ("beta", beta)):
        if not 0 <= value < math.inf:
            raise UsageError(f"dkd: {key} = {value} is a weight: it must be a finite number, 0 or above")
    if isinstance(targets, SampledLogits):
        raise not_sampled("dkd", "it divides by one minus the label's probability")
    label = check_label("dkd", student, label)
    labelled = label >= 0
    label = label.clamp(min=0)
    if isinstance(targets, SparseLogits):
        log_q, log_p, place = _with_label(student, targets, label, temperature)
    else:
        log_q, log_p = softened(student, targets, temperature)
        place = label[:, None]
    target_q, rest_q, others_q = _decoupled(log_q, place)
    target_p, rest_p, others_p = _decoupled(log_p, place)
    tckd = target_p.exp() * (target_p - target_q) + rest_p.exp() * (rest_p - rest_q)
    nckd = (others_p.exp() * (others_p - others_q)).sum(dim=1, keepdim=True)
    rows = torch.where(labelled[:, None], alpha * tckd + beta * nckd, 0)
    return temperature**2 * rows.sum() / labelled.sum().clamp(min=1)


def _decoupled(log_p: Tensor, place: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Logs of p_t [B, 1], of 1 - p_t [B, 1], and of the others' renormalised probabilities [B, M], NOTHING at t."""
    others = log_p.scatter(1, place, NOTHING)
    rest = others.logsumexp(dim=1, keepdim=True)  # 1 - p_t would lose a small rest to rounding
    return log_p.gather(1, place), rest, others - rest


def _with_label(
    student: Tensor, targets: SparseLogits, label: Tensor, temperature: float
) -> tuple[Tensor, Tensor, Tensor]:
    """log q_T and log p_T [B, K + 2] of the kept classes, of the label if it is none of them, of what is left of the
    tail; and the label's column, int64 [B, 1]."""
    check_temperature(temperature)
    check_rows(student, targets)
    kept, tail = targets.log_probs(temperature)
    valid = valid_slots(targets)
    hits = (targets.indices == label[:, None]) & valid
    outside = ~hits.any(dim=1, keepdim=True)
    place = torch.where(outside, hits.shape[1], hits.int().argmax(dim=1, keepdim=True))
    log_q = student_buckets(
        student,
        torch.cat([targets.indices, label[:, None]], dim=1),
        torch.cat([valid, outside], dim=1),
        temperature,
    )
    count = (targets.num_classes - valid.sum(dim=1, keepdim=True)).clamp(min=1)
    left = torch.where(outside, (count - 1) / count, 1.0).log()
    log_p = torch.cat([kept, torch.where(outside, tail[:, None] - count.log(), NOTHING), tail[:, None] + left], dim=1)
    return log_q, log_p.clamp(min=NOTHING), place
