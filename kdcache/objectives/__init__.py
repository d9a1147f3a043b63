"""Losses for distillation from a store: plain functions, and `compose`, the weighted sum that a recipe names."""

from __future__ import annotations

from kdcache.objectives.adapters import Adapter
from kdcache.objectives.adversarial import Adversarial, AdversarialFeature
from kdcache.objectives.attention import attention
from kdcache.objectives.cc import cc
from kdcache.objectives.compose import compose
from kdcache.objectives.cosine import Cosine
from kdcache.objectives.crd import CRD
from kdcache.objectives.deit import deit
from kdcache.objectives.detection import detection, detection_boxes, kd_foreground
from kdcache.objectives.dist import dist
from kdcache.objectives.divergences import jsd, reverse_kl, skew_kl
from kdcache.objectives.dkd import dkd
from kdcache.objectives.ensemble import ensemble, ensemble_by_label
from kdcache.objectives.feature import Hint, hint
from kdcache.objectives.fused import chunked, chunked_logits
from kdcache.objectives.gather import global_batch
from kdcache.objectives.irg import irg
from kdcache.objectives.kept import kd_kept
from kdcache.objectives.logits import mse_logits
from kdcache.objectives.margin import Margin
from kdcache.objectives.masked import MaskedMap
from kdcache.objectives.nst import nst
from kdcache.objectives.objective import Objective
from kdcache.objectives.pkt import pkt
from kdcache.objectives.regression import huber, l1, mse
from kdcache.objectives.response import ce, hard_label, kd, soft_ce
from kdcache.objectives.review import Review
from kdcache.objectives.rkd import rkd_angle, rkd_distance
from kdcache.objectives.shapes import Contest, Shapes
from kdcache.objectives.sp import sp
from kdcache.objectives.specs import ObjectiveSpec
from kdcache.objectives.standardised import logit_standardised_kd
from kdcache.objectives.table import OBJECTIVES
from kdcache.objectives.vid import Vid

__all__ = [
    "CRD",
    "OBJECTIVES",
    "Adapter",
    "Adversarial",
    "AdversarialFeature",
    "Contest",
    "Cosine",
    "Hint",
    "Margin",
    "MaskedMap",
    "Objective",
    "ObjectiveSpec",
    "Review",
    "Shapes",
    "Vid",
    "attention",
    "cc",
    "ce",
    "chunked",
    "chunked_logits",
    "compose",
    "deit",
    "detection",
    "detection_boxes",
    "dist",
    "dkd",
    "ensemble",
    "ensemble_by_label",
    "global_batch",
    "hard_label",
    "hint",
    "huber",
    "irg",
    "jsd",
    "kd",
    "kd_foreground",
    "kd_kept",
    "l1",
    "logit_standardised_kd",
    "mse",
    "mse_logits",
    "nst",
    "pkt",
    "reverse_kl",
    "rkd_angle",
    "rkd_distance",
    "skew_kl",
    "soft_ce",
    "sp",
]
