"""What references of losses on features are made of: places, averages and layers one by one, in float64."""

from __future__ import annotations

import copy
from collections.abc import Callable
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn

from kdcache.objectives.shapes import Shapes

__all__ = ["Shape", "built", "draw", "everywhere", "fresh", "mean", "mixed", "shared", "shrunk", "weights"]

Shape = tuple[int, ...]


def built(factory: Callable[..., nn.Module], student: Any, teacher: Any, **options: Any) -> nn.Module:
    """A loss with parameters drawn from a fixed seed, none of them at a special value."""
    with torch.random.fork_rng([]):
        torch.manual_seed(7)
        module = factory(Shapes(tuple(student), tuple(teacher), torch.arange(4).numpy(), 3), **options)
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.add_(0.3 * torch.randn_like(parameter))
    return module


def fresh(module: nn.Module) -> Callable[..., Tensor]:
    """The loss as it is in the first step: some have buffers that go on."""

    def call(*tensors: Any) -> Tensor:
        value: Tensor = copy.deepcopy(module)(*tensors)
        return value

    return call


def weights(module: nn.Module) -> list[Tensor]:
    return [parameter.detach().double() for parameter in module.parameters()]


def draw(*shapes: Shape, scale: float = 1.0) -> Callable[[torch.Generator, int], tuple[list[Any], list[Any]]]:
    """The student's feature, then the teacher's."""

    def make(generator: torch.Generator, rows: int) -> tuple[list[Any], list[Any]]:
        found = [scale * torch.randn(rows, *shape, generator=generator) for shape in shapes]
        return found[:1], found[1:]

    return make


def mean(values: list[Tensor]) -> Tensor:
    return torch.stack(values).sum(dim=0) / len(values)


def cells(size: int, made: int) -> list[range]:
    """Which of `size` places each of `made` averages over."""
    return [range(i * size // made, -(-(i + 1) * size // made)) for i in range(made)]


def shrunk(image: Tensor, space: Shape) -> Tensor:
    """[D, H, W] -> [D, *space], average by average."""
    rows = []
    for ys in cells(image.shape[1], space[0]):
        row = [mean([image[:, y, x] for y, x in product(ys, xs)]) for xs in cells(image.shape[2], space[1])]
        rows.append(torch.stack(row, dim=1))
    return torch.stack(rows, dim=1)


def shared(one: Tensor, other: Tensor) -> Shape:
    return min(one.shape[1], other.shape[1]), min(one.shape[2], other.shape[2])


def mixed(vector: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """A linear layer on [D]."""
    found = torch.stack([(row * vector).sum() for row in weight.flatten(1)])
    return found if bias is None else found + bias


def everywhere(image: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """A 1x1 convolution on [D, H, W]."""
    return torch.stack(
        [torch.stack([mixed(place, weight, bias) for place in column.T], dim=1) for column in image.unbind(2)], dim=2
    )
