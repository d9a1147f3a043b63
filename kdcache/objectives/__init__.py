"""Losses for distillation from a store: plain functions, and `compose`, the weighted sum that a recipe names."""

from __future__ import annotations

from kdcache.objectives.adapters import Adapter
from kdcache.objectives.compose import OBJECTIVES, Objective, ObjectiveSpec, compose
from kdcache.objectives.feature import hint
from kdcache.objectives.response import ce, hard_label, kd, mse_logits, soft_ce

__all__ = [
    "OBJECTIVES",
    "Adapter",
    "Objective",
    "ObjectiveSpec",
    "ce",
    "compose",
    "hard_label",
    "hint",
    "kd",
    "mse_logits",
    "soft_ce",
]
