"""What each of several gloo processes runs: a step of relational losses on its share of one batch.

The same module and batch without processes are what they must agree with.
"""

from __future__ import annotations

import sys
from contextlib import nullcontext
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from kdcache.codecs import QuantisedLogits, SampledLogits, SparseLogits
from kdcache.objectives.gather import global_batch
from kdcache.objectives.pkt import pkt
from kdcache.objectives.rkd import rkd_angle, rkd_distance

__all__ = ["Network", "batch_of", "gradients", "micro_batches", "step"]

WIDTH = 6


class Network(nn.Module):
    """Parameters before the gathering and behind it, as an adapter's are."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(WIDTH, 8), nn.Tanh(), nn.Linear(8, 5))
        self.adapter = nn.Linear(5, 3)

    def forward(self, x: Tensor, teacher: Tensor, factor: float) -> Tensor:
        feature = global_batch(self.body(x))
        target = global_batch(teacher)
        adapted = self.adapter(feature)
        loss = rkd_distance(feature, target) + 2 * rkd_angle(adapted, target) + 100 * pkt(adapted, target)
        return factor * loss


def batch_of(rows: int) -> tuple[Tensor, Tensor]:
    """Inputs and targets of a whole global batch, and a seeded network for them."""
    generator = torch.Generator().manual_seed(rows)
    inputs, teacher = torch.randn(rows, WIDTH, generator=generator), torch.randn(rows, 4, generator=generator)
    torch.manual_seed(1)
    return inputs, teacher


def gradients(network: nn.Module) -> dict[str, Tensor]:
    found = {name.removeprefix("module."): p.grad for name, p in network.named_parameters()}
    return {name: gradient for name, gradient in found.items() if gradient is not None}


def micro_batches(rows: int, world: int, parts: int) -> list[list[slice]]:
    """For each of `parts` micro-batches the rows of the global batch that each process has in it."""
    found: list[list[slice]] = []
    shares = [range(rank, rows, world) for rank in range(world)]
    for part in range(parts):
        places = [share[len(share) * part // parts : len(share) * (part + 1) // parts] for share in shares]
        found.append([slice(place.start, place.stop, world) for place in places])
    return found


def step(rank: int, world: int, rows: int, parts: int) -> dict[str, Tensor]:
    """The loss and gradients of one step, weighed by the rows of each process as a fit weighs them."""
    inputs, teacher = batch_of(rows)
    wrapped = DistributedDataParallel(Network())
    total = torch.zeros(())
    micro = micro_batches(rows, world, parts)
    for number, places in enumerate(micro, 1):
        mine = places[rank]
        with nullcontext() if number == parts else wrapped.no_sync():
            loss = wrapped(inputs[mine], teacher[mine], len(inputs[mine]) * world / rows)
            loss.backward()
        total += loss.detach()
    dist.all_reduce(total)
    return {"loss": total / world, **gradients(wrapped)}


def check_kinds(rank: int, world: int, rows: int) -> None:
    """Every kind of target comes back whole, in the order of the global batch, with its type."""
    generator = torch.Generator().manual_seed(2)
    floats, order = torch.randn(rows, 7, generator=generator), torch.randperm(rows, generator=generator)
    kept = floats.topk(3, dim=1)
    wholes = [
        floats,
        floats.half(),
        floats.bfloat16(),
        floats > 0,
        order,
        floats[:, :6].reshape(rows, 3, 1, 2).transpose(1, 3),
        SparseLogits(kept.indices, kept.values, floats[:, :2], 7, (1.0, 4.0)),
        SampledLogits(kept.indices, kept.values, 2.0, 7),
        QuantisedLogits(floats.abs().to(torch.uint8), floats[:, :1], floats[:, 1:2]),
    ]
    for whole in wholes:
        found = global_batch(whole[rank::world])
        assert type(found) is type(whole)
        if isinstance(whole, Tensor):
            assert found.dtype == whole.dtype
            assert torch.equal(found, whole)
            continue
        assert found.shape == whole.shape
        for name, part in vars(whole).items():
            other = getattr(found, name)
            assert torch.equal(other, part) if isinstance(part, Tensor) else other == part


def main(rank: int, world: int, meeting: Path, out: Path, cases: list[str]) -> None:
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=world)
    try:
        for rows in (0, 1, world, 7):
            check_kinds(rank, world, rows)
        for case in cases:
            rows, parts = map(int, case.split("x"))
            save_file(step(rank, world, rows, parts), out / f"{case}-{rank}.safetensors")
    finally:
        dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]), Path(sys.argv[4]), sys.argv[5:])
