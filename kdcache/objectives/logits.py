"""Losses on logits as they are, not softened to probabilities."""

from __future__ import annotations

from torch import Tensor

from kdcache.codecs import QuantisedLogits, SampledLogits, SparseLogits, Targets
from kdcache.errors import UsageError
from kdcache.objectives.buckets import valid_slots
from kdcache.objectives.matching import check_rows, row_mean, wide
from kdcache.objectives.sampled import not_sampled

__all__ = ["mse_logits"]


def mse_logits(student: Tensor, targets: Targets, *, centred: bool = False) -> Tensor:
    """(student - teacher)^2 on raw logits: mean over rows AND classes, without a factor 1/2.

    Ba & Caruana 2014, eq. 1, times 2/C. `centred` compares the logits less their row means, which is all that the
    `lowrank` codec keeps. On `SparseLogits` only the kept classes are compared, both sides less their means over the
    kept classes of the row (the store has them relative to the log-partition): mean over rows of the mean over the
    row's kept classes; UsageError if one class is kept, of which nothing would be left. `SampledLogits` are refused.
    """
    if isinstance(targets, SampledLogits):
        raise not_sampled("mse_logits", "it compares logits")
    check_rows(student, targets)
    if isinstance(targets, SparseLogits):
        return _kept(student, targets)
    teacher = targets.dense() if isinstance(targets, QuantisedLogits) else wide(targets)
    difference = wide(student) - teacher
    if centred:
        difference = difference - difference.mean(dim=1, keepdim=True)
    return row_mean(difference.square()) / difference.shape[1]


def _kept(student: Tensor, targets: SparseLogits) -> Tensor:
    if targets.indices.shape[1] == 1:
        raise UsageError(
            "mse_logits: a sparse store keeps logits relative to the row's log-partition, so they are compared less "
            "their mean over the kept classes, and of 1 kept class nothing is left: dump the field with k = 2 or more"
        )
    valid = valid_slots(targets)
    difference = wide(student.gather(1, targets.indices)) - targets.log_p.masked_fill(~valid, 0.0)
    difference = difference.masked_fill(~valid, 0.0)
    count = valid.sum(dim=1, keepdim=True)
    centred = (difference - difference.sum(dim=1, keepdim=True) / count).masked_fill(~valid, 0.0)
    return row_mean(centred.square() / count)
