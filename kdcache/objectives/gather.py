"""Rows of all processes, in the order of the global batch, for losses that compare the rows of a batch."""

from __future__ import annotations

import dataclasses
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

from kdcache.codecs import QuantisedLogits, SampledLogits, SparseLogits

__all__ = ["global_batch"]

T = TypeVar("T", Tensor, SparseLogits, SampledLogits, QuantisedLogits)


def global_batch(rows: T) -> T:
    """The rows of all W processes, [N, ...], of each one's [B, ...]; the argument itself where there is one process.

    Process r has rows r, r + W, r + 2 W, ... of the global batch, and all of them again have them in that order. B may
    differ between processes and be 0. Every process must call it as often, and go backward as often.

    The gradient that a row gets is the sum over processes of what each gave it. So if every process takes the same loss
    of the global batch, by a factor that is 1 in the mean over processes, `DistributedDataParallel`, which averages
    over processes, gives every parameter the gradient of that loss: those before the gathering and those after it.
    """
    if not dist.is_available() or not dist.is_initialized() or dist.get_world_size() == 1:
        return rows
    if isinstance(rows, Tensor):
        gathered: Tensor = _Gathered.apply(rows)  # type: ignore[no-untyped-call]
        return gathered
    parts = {part.name: getattr(rows, part.name) for part in dataclasses.fields(rows)}
    changed: dict[str, Any] = {name: global_batch(part) for name, part in parts.items() if isinstance(part, Tensor)}
    return dataclasses.replace(rows, **changed)


class _Gathered(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        world, mine = dist.get_world_size(), len(rows)
        counted = torch.empty(world, dtype=torch.int64, device=rows.device)
        dist.all_gather_into_tensor(counted, counted.new_tensor([mine]))
        ctx.counts = counted.tolist()
        most = max(ctx.counts)
        gathered = rows.new_empty(world * most, *rows.shape[1:])
        if most:
            padding = rows.new_zeros(most - mine, *rows.shape[1:])
            dist.all_gather_into_tensor(gathered, torch.cat([rows, padding]) if len(padding) else rows.contiguous())
        number, process = _origins(ctx.counts)
        return gathered[(process * most + number).to(rows.device)]

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        summed = gradient.clone(memory_format=torch.contiguous_format)
        if len(summed):
            dist.all_reduce(summed)
        _, process = _origins(ctx.counts)
        return summed[(process == dist.get_rank()).nonzero()[:, 0].to(summed.device)]


def _origins(counts: list[int]) -> tuple[Tensor, Tensor]:
    """For each row of the global batch, int64 [N]: its number among its process's rows, and that process."""
    there = torch.arange(max(counts))[:, None] < torch.tensor(counts)
    number, process = there.nonzero(as_tuple=True)
    return number, process
