"""Knowledge distillation on logits of mean 0 and deviation 1, so that the student need not match their scale."""

from __future__ import annotations

import torch
from torch import Tensor

from kdcache.codecs import Targets
from kdcache.objectives.matching import wide
from kdcache.objectives.response import kd
from kdcache.objectives.whole import whole

__all__ = ["logit_standardised_kd"]

_ROUNDING = 1e-6  # of a row's largest logit: what float32 leaves of a constant row less its mean


def logit_standardised_kd(student: Tensor, targets: Targets, *, temperature: float = 2.0) -> Tensor:
    """T^2 KL(softmax(Z(teacher) / T) || softmax(Z(student) / T)) in nats, Z(z) = (z - mean z) / std z: mean over rows.

    Sun et al. 2024 (Logit Standardization in Knowledge Distillation), algorithms 1 and 2: mean and deviation of each
    row over its C classes, the deviation divided by C as in the paper; T is the base temperature, 2 in its tables on
    CIFAR-100. It is `kd` on the standardised logits, and the factor is T^2, not that of each row's own temperature
    T std z. The scale and the shift of either side's rows do not matter.

    The authors' code divides the deviation by C - 1 and adds 1e-7 to it, which is this at T sqrt(C / (C - 1)), times
    (C - 1) / C. A row that is constant but for rounding becomes zeros and passes no gradient, instead of one of the
    order of 1e7. Needs the mean and deviation of all classes: `SparseLogits` and `SampledLogits` are refused.
    """
    teacher = whole("logit_standardised_kd", "it needs the deviation of all of a row's logits", student, targets)
    return kd(_standardised(wide(student)), _standardised(teacher), temperature=temperature)


def _standardised(logits: Tensor) -> Tensor:
    """[B, C] less the rows' means, divided by their deviations."""
    centred = logits - logits.mean(dim=1, keepdim=True)
    spread, size = (values.detach().abs().amax(dim=1, keepdim=True) for values in (centred, logits))
    constant = spread <= _ROUNDING * size
    centred = centred.masked_fill(constant, 0.0)
    deviation = torch.linalg.vector_norm(centred, dim=1, keepdim=True) / logits.shape[1] ** 0.5
    standardised: Tensor = centred / deviation.masked_fill(constant, 1.0)
    return standardised
