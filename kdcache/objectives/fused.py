"""A loss over many rows (tokens), chunk by chunk: no more than one chunk's logits and their temporaries ever exist.

Gradients are computed on the way forward, while a chunk's logits are there, and only those of the inputs are kept
(Wijmans et al. 2025 and Liger kernels do it for cross-entropy; here it is any loss that is a mean over rows). The
backward pass multiplies them by the gradient of the result, so a weight or T^2 outside scales the gradient too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from kdcache.errors import UsageError
from kdcache.objectives.matching import wide

__all__ = ["RowLoss", "chunked", "chunked_logits", "default_chunk_rows"]

RowLoss = Callable[[Tensor, slice], Tensor]  # (logits [n, V], float32 or wider; which rows) -> their mean loss
CHUNK_BYTES = 16 << 20  # of a chunk's float32 logits; larger ones are not faster


def chunked(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, loss: RowLoss, chunk_rows: int | None = None
) -> Tensor:
    """The mean over rows of `loss` on the logits hidden @ weight.T + bias, which are never made for all rows at once.

    hidden [N, D], weight [V, D], bias [V]. `loss(logits, rows)` gets each slice of `chunk_rows` rows once (by default
    as many as make 16 MiB of logits) and gives their mean; it may read anything else, but gradients go to hidden,
    weight and bias alone. Equal to `loss` on all logits at once up to float32 rounding, 0 for no rows. Under autocast
    the matrix products run in its type and the loss in float32. Memory beyond the inputs: a few chunks of logits, and
    as much as the inputs for their gradients. Double backward is not defined.
    """
    if hidden.ndim != 2 or weight.ndim != 2 or hidden.shape[1] != weight.shape[1]:
        raise UsageError(
            f"chunked: hidden states {list(hidden.shape)} and a head's weight {list(weight.shape)} do not fit: "
            "pass [N, D] and [V, D]"
        )
    rows = _checked(chunk_rows, len(weight))
    return _mean(hidden, weight, bias, loss, rows)


def chunked_logits(student: Tensor, loss: RowLoss, chunk_rows: int | None = None) -> Tensor:
    """`chunked` for logits [N, V] that exist already: the loss's temporaries are those of one chunk.

    What is kept for the backward pass is one gradient like the logits.
    """
    if student.ndim != 2:
        raise UsageError(f"chunked_logits: the student's outputs are {list(student.shape)}; pass [rows, classes]")
    return _mean(student, None, None, loss, _checked(chunk_rows, student.shape[1]))


def default_chunk_rows(classes: int) -> int:
    """Rows that make 16 MiB of float32 logits, at least 1."""
    return max(1, CHUNK_BYTES // (4 * max(classes, 1)))


def _checked(chunk_rows: int | None, classes: int) -> int:
    if chunk_rows is not None and chunk_rows < 1:
        raise UsageError(f"chunk_rows = {chunk_rows}: give 1 or more, or None for {default_chunk_rows(classes)}")
    return chunk_rows or default_chunk_rows(classes)


def _mean(hidden: Tensor, weight: Tensor | None, bias: Tensor | None, loss: RowLoss, chunk_rows: int) -> Tensor:
    kind = hidden.device.type
    dtype = torch.get_autocast_dtype(kind) if weight is not None and torch.is_autocast_enabled(kind) else hidden.dtype
    given = (hidden, weight, bias)
    with torch.autocast(kind, enabled=False):
        if torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in given):
            value: Tensor = _Chunked.apply(*given, loss, chunk_rows, dtype)  # type: ignore[no-untyped-call]
            return value
        total = hidden.new_zeros((), dtype=wide(hidden[:0]).dtype)
        for rows, logits in _chunks(hidden, _cast(weight, dtype), _cast(bias, dtype), chunk_rows):
            total += loss(wide(logits), rows) * len(logits)
        mean: Tensor = total / max(len(hidden), 1)
        return mean


def _chunks(
    hidden: Tensor, weight: Tensor | None, bias: Tensor | None, chunk_rows: int
) -> Iterator[tuple[slice, Tensor]]:
    """Slices of rows and their logits [n, V], in the weight's type."""
    for start in range(0, len(hidden), chunk_rows):
        rows = slice(start, min(start + chunk_rows, len(hidden)))
        part = hidden[rows]
        yield rows, part if weight is None else F.linear(part.to(weight.dtype), weight, bias)


def _cast(tensor: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    return None if tensor is None else tensor.detach().to(dtype)


class _Chunked(torch.autograd.Function):
    """Keeps the gradients of the SUM over rows: those of the mean might be too small for a half-precision type."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        loss: RowLoss,
        chunk_rows: int,
        dtype: torch.dtype,
    ) -> Tensor:
        needs = ctx.needs_input_grad
        low = _cast(weight, dtype)
        total = hidden.new_zeros((), dtype=wide(hidden[:0]).dtype)
        of_hidden = torch.zeros_like(hidden) if needs[0] else None
        of_weight = torch.zeros_like(weight, dtype=total.dtype) if weight is not None and needs[1] else None
        of_bias = torch.zeros_like(bias, dtype=total.dtype) if bias is not None and needs[2] else None
        for rows, logits in _chunks(hidden.detach(), low, _cast(bias, dtype), chunk_rows):
            leaf = wide(logits).detach().requires_grad_()
            with torch.enable_grad():
                value = loss(leaf, rows) * len(leaf)
            total += value.detach()
            if not value.requires_grad:  # a loss that is constant, of weight 0 for instance
                continue
            (slope,) = torch.autograd.grad(value, leaf)
            del value, leaf, logits
            if of_bias is not None:
                of_bias += slope.sum(dim=0)
            slope = slope.to(dtype)
            if of_hidden is not None:
                of_hidden[rows] = slope if low is None else slope @ low
            if of_weight is not None:
                part = hidden.detach()[rows].to(dtype)
                if dtype == of_weight.dtype:
                    of_weight.addmm_(slope.T, part)
                else:
                    of_weight += slope.T @ part
            del slope  # not beside the next chunk's logits
        ctx.save_for_backward(of_hidden, of_weight, of_bias)
        ctx.rows = max(len(hidden), 1)
        ctx.dtypes = [None if tensor is None else tensor.dtype for tensor in (hidden, weight, bias)]
        mean: Tensor = total / ctx.rows
        return mean

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        scale = gradient / ctx.rows
        found = (
            None if slope is None else (slope * scale).to(dtype)
            for slope, dtype in zip(ctx.saved_tensors, ctx.dtypes, strict=True)
        )
        return (*found, None, None, None)
