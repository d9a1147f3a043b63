"""Losses for distillation from a store: plain functions, and `compose`, the weighted sum that a recipe names."""

from __future__ import annotations

from kdcache.objectives.adapters import Adapter
from kdcache.objectives.compose import compose
from kdcache.objectives.divergences import jsd, reverse_kl
from kdcache.objectives.dkd import dkd
from kdcache.objectives.feature import hint
from kdcache.objectives.fused import chunked, chunked_logits
from kdcache.objectives.kept import kd_kept
from kdcache.objectives.logits import mse_logits
from kdcache.objectives.objective import Objective
from kdcache.objectives.response import ce, hard_label, kd, soft_ce
from kdcache.objectives.specs import ObjectiveSpec
from kdcache.objectives.table import OBJECTIVES

__all__ = [
    "OBJECTIVES",
    "Adapter",
    "Objective",
    "ObjectiveSpec",
    "ce",
    "chunked",
    "chunked_logits",
    "compose",
    "dkd",
    "hard_label",
    "hint",
    "jsd",
    "kd",
    "kd_kept",
    "mse_logits",
    "reverse_kl",
    "soft_ce",
]
