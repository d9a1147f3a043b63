"""Distillation on the kept classes alone, as plain top-k stores do it: biased, and here to be compared with."""

from __future__ import annotations

import torch
from torch import Tensor

from kdcache.codecs import QuantisedLogits, SparseLogits
from kdcache.objectives.buckets import NOTHING, valid_slots
from kdcache.objectives.matching import check_rows, check_temperature, row_mean, wide
from kdcache.objectives.response import kd

__all__ = ["kd_kept"]


def kd_kept(student: Tensor, targets: Tensor | SparseLogits | QuantisedLogits, *, temperature: float = 1.0) -> Tensor:
    """T^2 sum over kept classes of p' (log p' - log q_T), p' the teacher's p_T of these renormalised: mean over rows.

    The loss of stores that keep k classes and nothing of the rest. Its optimum is q = p / M on them, M their mass, and
    0 elsewhere: the head is scaled up by 1 / M and the tail unlearnt (Random Sampling Knowledge Distillation, ACL 2025,
    arXiv 2503.16870). `kd` on the same store holds the tail to its mass. On other targets it is `kd`.
    """
    if not isinstance(targets, SparseLogits):
        return kd(student, targets, temperature=temperature)
    check_temperature(temperature)
    check_rows(student, targets)
    valid = valid_slots(targets)
    log_p = torch.log_softmax((wide(targets.log_p) / temperature).masked_fill(~valid, NOTHING), dim=1)
    log_q = torch.log_softmax(wide(student) / temperature, dim=1).gather(1, targets.indices)
    p = log_p.exp()
    return temperature**2 * row_mean(torch.where(p != 0, p * (log_p - log_q), 0))
