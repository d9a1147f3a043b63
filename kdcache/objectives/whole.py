"""A teacher's logits of all classes, for the losses that cannot do with fewer."""

from __future__ import annotations

from torch import Tensor

from kdcache.codecs import QuantisedLogits, SampledLogits, SparseLogits, Targets
from kdcache.errors import UsageError
from kdcache.objectives.matching import check_rows, wide
from kdcache.objectives.sampled import not_sampled

__all__ = ["whole"]


def whole(name: str, reason: str, student: Tensor, targets: Targets, cure: str = "take kd") -> Tensor:
    """The teacher's logits [B, C], float32 (float64 if they are); UsageError naming the loss `name` for sparse targets.

    `reason` says what needs all classes; `cure` what else can be done on such targets than storing them all.
    """
    if isinstance(targets, SampledLogits):
        raise not_sampled(name, reason)
    check_rows(student, targets)
    if isinstance(targets, SparseLogits):
        kept, classes = targets.indices.shape[1], targets.num_classes
        raise UsageError(
            f"{name}: {reason}, and these targets keep {kept} of {classes} classes one by one: {cure}, or dump the "
            'field with codec = "dense", "quant" or "lowrank"'
        )
    return targets.dense() if isinstance(targets, QuantisedLogits) else wide(targets)
