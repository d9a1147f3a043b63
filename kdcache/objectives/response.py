"""Losses on the student's outputs: against labels, or against the teacher's logits, dense or sparse.

Every loss is computed in float32 whatever comes in, and is the mean over the rows of the batch; for a batch without
rows (a rank's empty share of the last one) it is 0, with a zero gradient. `student` is logits [B, C]. Targets are
logits [B, C], or `SparseLogits`, of which the classes that are not kept count as one more class, the tail.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from kdcache.codecs import SparseLogits
from kdcache.errors import UsageError

__all__ = ["ce", "hard_label", "kd", "mse_logits", "soft_ce"]


def ce(student: Tensor, label: Tensor) -> Tensor:
    """-log q(label), q = softmax(student): mean over the LABELLED rows of the batch, 0 if there is none.

    label int64 [B]; -1 = unlabelled, which adds neither to the sum nor to the count.
    """
    classes = _width(student)
    if label.shape != student.shape[:1] or label.dtype != torch.int64:
        raise UsageError(
            f"ce: labels are {label.dtype} {list(label.shape)}, and {len(student)} rows of the student "
            f"need int64 [{len(student)}]: pass the batch's `label`"
        )
    # On an accelerator the check would wait for the device at every step; sources and stores check their labels too.
    if label.device.type == "cpu" and bool(((label < -1) | (label >= classes)).any()):
        raise UsageError(
            f"ce: labels run from {int(label.min())} to {int(label.max())}, and the student's {classes} "
            f"outputs take 0 to {classes - 1}, or -1 for none: set the student's number of outputs"
        )
    total = F.cross_entropy(student.float(), label, ignore_index=-1, reduction="sum")
    return total / (label != -1).sum().clamp(min=1)


def hard_label(student: Tensor, targets: Tensor | SparseLogits) -> Tensor:
    """-log q(c) with c the teacher's best class: mean over rows.

    The second term of DeiT's hard distillation alone (Touvron et al. 2021, eq. 3), without its factor 1/2.
    """
    _matching(student, targets)
    best = targets.indices[:, 0] if isinstance(targets, SparseLogits) else targets.argmax(dim=1)
    return ce(student, best)


def kd(student: Tensor, targets: Tensor | SparseLogits, *, temperature: float = 1.0) -> Tensor:
    """T^2 KL(p_T || q_T) in nats, p_T = softmax(teacher / T), q_T = softmax(student / T): mean over rows.

    Hinton et al. 2015, eq. 1 and section 2. T^2 multiplies the gradient too, which is T (q_T - p_T) / B by the
    student's logits [B, C]. Any T > 0 on dense targets, T >= 1 on sparse ones.
    """
    log_q, log_p = _softened(student, targets, temperature)
    p = log_p.exp()
    divergence = torch.where(p > 0, p * (log_p - log_q), 0)
    return temperature**2 * _row_mean(divergence)


def soft_ce(student: Tensor, targets: Tensor | SparseLogits, *, temperature: float = 1.0) -> Tensor:
    """-T^2 sum p_T log q_T, the cross-entropy of the softened distributions: mean over rows.

    It is `kd` plus T^2 times the teacher's entropy: another value, the same gradient.
    """
    log_q, log_p = _softened(student, targets, temperature)
    p = log_p.exp()
    return -(temperature**2) * _row_mean(torch.where(p > 0, p * log_q, 0))


def mse_logits(student: Tensor, targets: Tensor, *, centred: bool = False) -> Tensor:
    """(student - teacher)^2 on raw logits: mean over rows AND classes, without a factor 1/2.

    Ba & Caruana 2014, eq. 1, times 2/C. `centred` compares the logits less their row means, which is all that the
    `lowrank` codec keeps. Refused on sparse targets.
    """
    if isinstance(targets, SparseLogits):
        raise UsageError(
            "mse_logits: a sparse store keeps logits relative to the log-partition, and those of few "
            'classes, so the raw ones are gone: dump the field with codec = "dense", or use kd'
        )
    _matching(student, targets)
    difference = student.float() - targets.float()
    if centred:
        difference = difference - difference.mean(dim=1, keepdim=True)
    return _row_mean(difference.square()) / difference.shape[1]


def _softened(student: Tensor, targets: Tensor | SparseLogits, temperature: float) -> tuple[Tensor, Tensor]:
    """log q_T and log p_T over the same classes: [B, C], or [B, K] and a last column for the tail if C > K."""
    if not 0 < temperature < math.inf:
        raise UsageError(f"temperature = {temperature}: it must be a finite number above 0")
    _matching(student, targets)
    log_q = torch.log_softmax(student.float() / temperature, dim=1)
    if not isinstance(targets, SparseLogits):
        return log_q, torch.log_softmax(targets.float() / temperature, dim=1)
    kept, tail = targets.log_probs(temperature)
    kept_q = log_q.gather(1, targets.indices)
    if targets.tail_count == 0:
        return kept_q, kept
    # 1 - sum(kept) would lose a small tail to rounding; the sum of the others' logs does not.
    tail_q = log_q.scatter(1, targets.indices, -math.inf).logsumexp(dim=1)
    return torch.cat([kept_q, tail_q[:, None]], dim=1), torch.cat([kept, tail[:, None]], dim=1)


def _row_mean(values: Tensor) -> Tensor:
    return values.sum() / max(len(values), 1)


def _width(student: Tensor) -> int:
    if student.ndim != 2:
        raise UsageError(f"the student's outputs are {list(student.shape)}; a loss on logits takes [rows, classes]")
    return student.shape[1]


def _matching(student: Tensor, targets: Tensor | SparseLogits) -> None:
    found = (len(targets), targets.num_classes) if isinstance(targets, SparseLogits) else tuple(targets.shape)
    classes = _width(student)
    if len(found) != 2 or found[0] != len(student):
        raise UsageError(
            f"the student's outputs are {list(student.shape)} and the targets {list(found)}: "
            "pass the logits of the same rows"
        )
    if found[1] != classes:
        raise UsageError(
            f"the student gives {classes} outputs, the store's logits have {found[1]} classes; "
            f"set the student's number of outputs to {found[1]}"
        )
