"""`OBJECTIVES`: the losses that a recipe can name."""

from __future__ import annotations

from kdcache.objectives.adversarial import Adversarial, AdversarialFeature
from kdcache.objectives.attention import attention
from kdcache.objectives.cc import cc
from kdcache.objectives.cosine import Cosine
from kdcache.objectives.crd import CRD
from kdcache.objectives.deit import deit
from kdcache.objectives.detection import detection, detection_boxes, kd_foreground
from kdcache.objectives.dist import dist
from kdcache.objectives.divergences import jsd, reverse_kl, skew_kl
from kdcache.objectives.dkd import dkd
from kdcache.objectives.ensemble import ensemble, ensemble_by_label
from kdcache.objectives.feature import Hint
from kdcache.objectives.irg import irg
from kdcache.objectives.kept import kd_kept
from kdcache.objectives.logits import mse_logits
from kdcache.objectives.margin import Margin
from kdcache.objectives.masked import MaskedMap
from kdcache.objectives.nst import nst
from kdcache.objectives.pkt import pkt
from kdcache.objectives.regression import huber, l1, mse
from kdcache.objectives.response import ce, hard_label, kd, soft_ce
from kdcache.objectives.review import Review
from kdcache.objectives.rkd import rkd_angle, rkd_distance
from kdcache.objectives.sp import sp
from kdcache.objectives.specs import ObjectiveSpec
from kdcache.objectives.standardised import logit_standardised_kd
from kdcache.objectives.vid import Vid

__all__ = ["OBJECTIVES"]

_RESPONSE = {
    "ce": ObjectiveSpec(ce, field=("label",), labelled=True, sparse=True),
    "deit": ObjectiveSpec(deit, output=("class", "distillation"), label=True, sparse=True, sampled=True),
    "dist": ObjectiveSpec(dist, together=2),
    "dkd": ObjectiveSpec(dkd, label=True, labelled=True, sparse=True),
    "hard_label": ObjectiveSpec(hard_label, sparse=True, sampled=True),
    "jsd": ObjectiveSpec(jsd, sparse=True),
    "kd": ObjectiveSpec(kd, sparse=True, sampled=True),
    "kd_kept": ObjectiveSpec(kd_kept, sparse=True),
    "logit_standardised_kd": ObjectiveSpec(logit_standardised_kd),
    "mse_logits": ObjectiveSpec(mse_logits, sparse=True),
    "reverse_kl": ObjectiveSpec(reverse_kl, sparse=True),
    "skew_kl": ObjectiveSpec(skew_kl, sparse=True),
    "soft_ce": ObjectiveSpec(soft_ce, sparse=True, sampled=True),
}
_TEACHERS = {
    "ensemble": ObjectiveSpec(ensemble, teachers=True),
    "ensemble_by_label": ObjectiveSpec(ensemble_by_label, teachers=True, label=True),
}
_FEATURE = {
    "attention": ObjectiveSpec(attention, "features", field=()),
    "cosine": ObjectiveSpec(Cosine, "features", field=()),
    "hint": ObjectiveSpec(Hint, "features", field=()),
    "margin": ObjectiveSpec(Margin, "features", field=()),
    "masked_map": ObjectiveSpec(MaskedMap, "features", field=()),
    "nst": ObjectiveSpec(nst, "features", field=()),
    "review": ObjectiveSpec(Review, "features", field=(), many=True),
    "vid": ObjectiveSpec(Vid, "features", field=()),
}
_RELATIONAL = {
    "cc": ObjectiveSpec(cc, "features", field=(), together=2),
    "crd": ObjectiveSpec(CRD, "features", field=(), id=True),
    "irg": ObjectiveSpec(irg, "features", field=(), many=True, together=3),
    "pkt": ObjectiveSpec(pkt, "features", field=(), together=2),
    "rkd_angle": ObjectiveSpec(rkd_angle, "features", field=(), together=3),
    "rkd_distance": ObjectiveSpec(rkd_distance, "features", field=(), together=3),
    "sp": ObjectiveSpec(sp, "features", field=(), together=2),
}
_ADVERSARIAL = {
    "adversarial": ObjectiveSpec(Adversarial),
    "adversarial_feature": ObjectiveSpec(AdversarialFeature, "features", field=()),
}
_DENSE = {  # values, boxes
    "detection": ObjectiveSpec(detection, "values", ("logits", "boxes"), ("boxes", "boxes.class")),
    "detection_boxes": ObjectiveSpec(detection_boxes, "values", ("boxes",), ()),
    "huber": ObjectiveSpec(huber, "values", field=("target",)),
    "kd_foreground": ObjectiveSpec(kd_foreground),
    "l1": ObjectiveSpec(l1, "values", field=("target",)),
    "mse": ObjectiveSpec(mse, "values", field=("target",)),
}

OBJECTIVES: dict[str, ObjectiveSpec] = dict(
    sorted({**_RESPONSE, **_TEACHERS, **_FEATURE, **_RELATIONAL, **_ADVERSARIAL, **_DENSE}.items())
)
