"""`OBJECTIVES`: the losses that a recipe can name, what each reads, and which stored targets it is defined on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from kdcache.objectives.divergences import jsd, reverse_kl
from kdcache.objectives.dkd import dkd
from kdcache.objectives.feature import hint
from kdcache.objectives.kept import kd_kept
from kdcache.objectives.logits import mse_logits
from kdcache.objectives.response import ce, hard_label, kd, soft_ce

__all__ = ["OBJECTIVES", "ObjectiveSpec"]


@dataclass(frozen=True)
class ObjectiveSpec:
    """One row of `OBJECTIVES`."""

    function: Callable[..., Tensor]  # (student's tensor, the field's targets[, the labels], **options) -> scalar
    field: str | None = "logits"  # read unless the recipe names another; None = the recipe has to
    options: tuple[str, ...] = ()  # keys of [[objective]] that it takes beside name, weight, field
    label: bool = False  # reads the labels too
    labelled: bool = False  # a mean over the labelled rows, not over all
    sparse: bool = True  # defined on SparseLogits
    sampled: bool = False  # defined on SampledLogits
    tap: bool = False  # compares a feature of the student behind an adapter, not its logits


OBJECTIVES: dict[str, ObjectiveSpec] = {
    "ce": ObjectiveSpec(ce, "label", labelled=True),
    "dkd": ObjectiveSpec(dkd, options=("temperature", "alpha", "beta"), label=True, labelled=True),
    "hard_label": ObjectiveSpec(hard_label, sampled=True),
    "hint": ObjectiveSpec(hint, None, sparse=False, tap=True),
    "jsd": ObjectiveSpec(jsd, options=("temperature", "beta")),
    "kd": ObjectiveSpec(kd, options=("temperature",), sampled=True),
    "kd_kept": ObjectiveSpec(kd_kept, options=("temperature",)),
    "mse_logits": ObjectiveSpec(mse_logits),
    "reverse_kl": ObjectiveSpec(reverse_kl, options=("temperature",)),
    "soft_ce": ObjectiveSpec(soft_ce, options=("temperature",), sampled=True),
}
