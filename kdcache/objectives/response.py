"""Losses on the student's outputs: against labels, or against the teacher's softened probabilities.

Every loss on logits is computed in float32 whatever comes in (float64 if the student is), and is the mean over the
rows of the batch; for a batch without rows (a rank's empty share of the last one) it is 0, with a zero gradient.
`student` is logits [B, C]. Targets are logits [B, C]; `QuantisedLogits`, made floats for these rows; `SparseLogits`, of
which the classes that are not kept count as one more class, the tail; or `SampledLogits`, at the T of their draws.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from kdcache.codecs import QuantisedLogits, SampledLogits, SparseLogits, Targets
from kdcache.objectives.buckets import softened
from kdcache.objectives.matching import check_label, check_rows, row_mean, wide
from kdcache.objectives.sampled import sampled_cross_entropy, sampled_entropy

__all__ = ["ce", "hard_label", "kd", "soft_ce"]


def ce(student: Tensor, label: Tensor) -> Tensor:
    """-log q(label), q = softmax(student): mean over the LABELLED rows of the batch, 0 if there is none.

    label int64 (or int32) [B]; -1 = unlabelled, which adds neither to the sum nor to the count.
    """
    label = check_label("ce", student, label)
    total = F.cross_entropy(wide(student), label, ignore_index=-1, reduction="sum")
    return total / (label != -1).sum().clamp(min=1)


def hard_label(student: Tensor, targets: Targets) -> Tensor:
    """-log q(c) with c the teacher's best class: mean over rows.

    The second term of DeiT's hard distillation alone (Touvron et al. 2021, eq. 3), without its factor 1/2. On
    `SampledLogits` c is the class of the largest weight, which may be another than the teacher's best where two are
    close; the only loss here that is neither exact nor unbiased on draws.
    """
    check_rows(student, targets)
    if isinstance(targets, SparseLogits):
        best = targets.indices[:, 0]
    elif isinstance(targets, SampledLogits):
        best = targets.indices.gather(1, targets.weights.argmax(dim=1, keepdim=True))[:, 0]
    else:
        best = (targets.codes if isinstance(targets, QuantisedLogits) else targets).argmax(dim=1)
    return ce(student, best)


def kd(student: Tensor, targets: Targets, *, temperature: float = 1.0) -> Tensor:
    """T^2 KL(p_T || q_T) in nats, p_T = softmax(teacher / T), q_T = softmax(student / T): mean over rows.

    Hinton et al. 2015, eq. 1 and section 2. T^2 multiplies the gradient too, which is T (q_T - p_T) / B by the
    student's logits [B, C]. Any T > 0 on dense and quantised targets, T >= 1 on sparse ones. On `SampledLogits`
    sum w (log w - log q_T), the stored T: an unbiased gradient, and a value above kd's by the entropy that w lacks.
    """
    if isinstance(targets, SampledLogits):
        cross = sampled_cross_entropy(student, targets, temperature)
        return temperature**2 * (cross - sampled_entropy(targets))
    log_q, log_p = softened(student, targets, temperature)
    p = log_p.exp()
    # Not `p > 0`: a teacher's NaN would then count as 0, and only the gradient would have it.
    return temperature**2 * row_mean(torch.where(p != 0, p * (log_p - log_q), 0))


def soft_ce(student: Tensor, targets: Targets, *, temperature: float = 1.0) -> Tensor:
    """-T^2 sum p_T log q_T, the cross-entropy of the softened distributions: mean over rows.

    It is `kd` plus T^2 times the teacher's entropy: another value, the same gradient. On `SampledLogits` value and
    gradient are unbiased.
    """
    if isinstance(targets, SampledLogits):
        return temperature**2 * sampled_cross_entropy(student, targets, temperature)
    log_q, log_p = softened(student, targets, temperature)
    p = log_p.exp()
    return -(temperature**2) * row_mean(torch.where(p != 0, p * log_q, 0))
