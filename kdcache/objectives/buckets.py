"""The student's and the teacher's softened distributions over the same classes, without a dense teacher.

On `SparseLogits` these are the K kept classes and one more, the tail: the C - K others as a group. The student's share
of the tail is summed class by class, since 1 - sum(kept) would lose a small one to rounding.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from kdcache.codecs import QuantisedLogits, SparseLogits
from kdcache.objectives.matching import check_rows, check_temperature, wide

__all__ = ["NOTHING", "softened", "student_buckets", "valid_slots"]

# The log-probability of a class that is not there. exp gives 0, and unlike -inf it can be subtracted and multiplied by
# 0; far below any real one, so that it stays 0 relative to them too.
NOTHING = -1e30


def softened(
    student: Tensor, targets: Tensor | SparseLogits | QuantisedLogits, temperature: float
) -> tuple[Tensor, Tensor]:
    """log q_T and log p_T over the same classes: [B, C], or [B, K] and a last column for the tail if C > K.

    Padded slots of a sparse row are NOTHING on both sides. UsageError for a temperature that the targets do not serve.
    """
    check_temperature(temperature)
    check_rows(student, targets)
    if isinstance(targets, SparseLogits):
        kept, tail = targets.log_probs(temperature)
        valid = valid_slots(targets)
        log_q = student_buckets(student, targets.indices, valid, temperature)
        kept = kept.masked_fill(~valid, NOTHING)
        if targets.tail_count == 0:
            return log_q[:, :-1], kept
        return log_q, torch.cat([kept, tail[:, None]], dim=1)
    teacher = targets.dense() if isinstance(targets, QuantisedLogits) else wide(targets)
    return torch.log_softmax(wide(student) / temperature, dim=1), torch.log_softmax(teacher / temperature, dim=1)


def valid_slots(targets: SparseLogits) -> Tensor:
    """bool [..., K]: the slots that hold a class. Padding has log_p = -inf, which no stored class has."""
    return targets.log_p > -math.inf


def student_buckets(student: Tensor, indices: Tensor, valid: Tensor, temperature: float) -> Tensor:
    """log q_T, q_T = softmax(student / T), of classes and of the group of all others: float [B, K + 1].

    student [B, C]; indices int64 [B, K], distinct where `valid`, bool [B, K]; an index that is not valid must repeat
    a valid one of its row. Its column is NOTHING and passes no gradient, and so is the last column where no class is
    left. Keeps nothing of B x C values but the student's own, and makes one such tensor forward and one backward.
    """
    log_q: Tensor = _Buckets.apply(student, indices, valid, temperature)  # type: ignore[no-untyped-call]
    return log_q


class _Buckets(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, student: Tensor, indices: Tensor, valid: Tensor, temperature: float) -> Tensor:
        z = wide(student) / temperature
        kept = z.gather(1, indices).masked_fill_(~valid, -math.inf)
        z.scatter_(1, indices, -math.inf)
        highest = z.amax(dim=1, keepdim=True).clamp_(min=torch.finfo(z.dtype).min)  # -inf - -inf is NaN
        tail = z.sub_(highest).exp_().sum(dim=1, keepdim=True).log_().add_(highest)
        everything = torch.cat([kept, tail], dim=1)
        log_q = everything - everything.logsumexp(dim=1, keepdim=True)
        log_q.masked_fill_(log_q == -math.inf, NOTHING)
        ctx.save_for_backward(student, indices, valid, tail, log_q)
        ctx.temperature = temperature
        return log_q

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        """With G the row's sum of gradients g: g_k - q_k G for a kept class, (g_tail - q_tail G) q_j / q_tail else."""
        student, indices, valid, tail, log_q = ctx.saved_tensors
        gradient = gradient.masked_fill(log_q == NOTHING, 0.0)
        slope = (gradient - log_q.exp() * gradient.sum(dim=1, keepdim=True)) / ctx.temperature
        z = wide(student) / ctx.temperature
        z.scatter_(1, indices, -math.inf)
        z.sub_(tail.masked_fill(tail == -math.inf, 0.0)).exp_().mul_(slope[:, -1:])
        z.scatter_add_(1, indices, slope[:, :-1].masked_fill(~valid, 0.0))
        return z.to(student.dtype), None, None, None
