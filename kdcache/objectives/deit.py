"""DeiT: a class token that learns from the labels, and beside it a distillation token that learns from the teacher."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from kdcache.codecs import Targets
from kdcache.errors import UsageError
from kdcache.objectives.response import ce, hard_label, kd

__all__ = ["deit"]


def deit(
    class_logits: Tensor,
    distillation_logits: Tensor,
    targets: Targets,
    label: Tensor,
    *,
    kind: Literal["hard", "soft"] = "hard",
    alpha: float = 0.5,
    temperature: float = 1.0,
) -> Tensor:
    """(1 - alpha) ce(class_logits, label) + alpha D(distillation_logits, targets), a scalar in nats.

    Touvron et al. 2021, section 4. D is `hard_label` for kind = "hard" (eq. 3, alpha = 1/2), which takes no notice of
    the temperature, and `kd` for "soft" (eq. 2, whose lambda is alpha; the paper has alpha = 0.1, T = 3). Each of the
    student's two heads gives [B, C]; at inference their softmaxes are averaged. `ce` is the mean over the labelled
    rows (-1 = unlabelled), D the mean over all; the targets are what D takes, sparse and drawn ones too.

    D of "soft" is a sum over classes and a mean over rows, as in the paper and in timm. DeiT's own code divides the
    sum by B C, so what is alpha there is about alpha / (C (1 - alpha) + alpha) here.
    """
    if kind not in ("hard", "soft"):
        raise UsageError(f'deit: kind = {kind!r}: it is "hard" (the teacher\'s best class) or "soft" (its softmax)')
    if not 0 <= alpha <= 1:
        raise UsageError(f"deit: alpha = {alpha} is the distillation token's share of the loss, from 0 to 1")
    if class_logits.shape != distillation_logits.shape:
        raise UsageError(
            f"deit: the class head gives {list(class_logits.shape)} and the distillation head "
            f"{list(distillation_logits.shape)}: both give one logit for each class, of the same rows"
        )
    if kind == "hard":
        learnt = hard_label(distillation_logits, targets)
    else:
        learnt = kd(distillation_logits, targets, temperature=temperature)
    return (1 - alpha) * ce(class_logits, label) + alpha * learnt
