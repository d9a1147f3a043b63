"""`OBJECTIVES`: the losses that a recipe can name."""

from __future__ import annotations

from kdcache.objectives.divergences import jsd, reverse_kl
from kdcache.objectives.dkd import dkd
from kdcache.objectives.feature import hint
from kdcache.objectives.kept import kd_kept
from kdcache.objectives.logits import mse_logits
from kdcache.objectives.response import ce, hard_label, kd, soft_ce
from kdcache.objectives.specs import ObjectiveSpec

__all__ = ["OBJECTIVES"]

OBJECTIVES: dict[str, ObjectiveSpec] = {
    "ce": ObjectiveSpec(ce, field=("label",), labelled=True, sparse=True),
    "dkd": ObjectiveSpec(dkd, label=True, labelled=True, sparse=True),
    "hard_label": ObjectiveSpec(hard_label, sparse=True, sampled=True),
    "hint": ObjectiveSpec(hint, "features", field=(), adapter=True),
    "jsd": ObjectiveSpec(jsd, sparse=True),
    "kd": ObjectiveSpec(kd, sparse=True, sampled=True),
    "kd_kept": ObjectiveSpec(kd_kept, sparse=True),
    "mse_logits": ObjectiveSpec(mse_logits, sparse=True),
    "reverse_kl": ObjectiveSpec(reverse_kl, sparse=True),
    "soft_ce": ObjectiveSpec(soft_ce, sparse=True, sampled=True),
}
