"""Cases of the contrastive loss: loops over rows and negatives, float64, h as the paper's fraction, no sigmoid."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from objective_case import Case
from torch import Tensor, nn

from kdcache.objectives.crd import CRD
from kdcache.objectives.shapes import Shapes

__all__ = ["CASES"]

SAMPLES, WIDTH = 40, 6
IDS = np.arange(100, 100 + 3 * SAMPLES, 3)
Shape = tuple[int, ...]


def crd(student: Shape, teacher: Shape, training: bool = True) -> Callable[..., Tensor]:
    """A first step of a module built under a seed of its own, so that each call draws the same."""

    def function(*tensors: Tensor, **options: Any) -> Tensor:
        with torch.random.fork_rng([]):
            torch.manual_seed(7)
            module = CRD(Shapes((student,), (teacher,), IDS, 10), width=WIDTH, **options).train(training)
            loss: Tensor = module(*tensors)
        return loss

    return function


def reference(student: Shape, teacher: Shape, training: bool = True) -> Callable[..., Tensor]:
    def function(s: Tensor, t: Tensor, id: Tensor, *, negatives: int, temperature: float = 0.07) -> Tensor:
        with torch.random.fork_rng([]):
            torch.manual_seed(7)
            heads = [nn.Linear(shape[0] if len(shape) != 2 else shape[1], WIDTH) for shape in (student, teacher)]
            banks = torch.randn(2, SAMPLES, WIDTH)
            draws = torch.randint(SAMPLES - 1, (len(id), negatives))
        ours, theirs = (
            [unit(vector(x) @ head.weight.detach().double().T + head.bias.detach().double()) for x in feature]
            for head, feature in zip(heads, (s, t), strict=True)
        )
        bank = [[unit(row.double()) for row in side] for side in banks]
        of_student, of_teacher = bank
        total = torch.zeros((), dtype=torch.float64)
        for mine, opposite, rows in ((ours, theirs, of_teacher), (theirs, ours, of_student)):
            near, far = [], []
            for row, anchor in enumerate(mine):
                place = int(np.flatnonzero(int(id[row]) == IDS)[0])
                other = rows[place] if training else opposite[row]
                near.append((anchor @ other / temperature).exp())
                others = [k for k in range(SAMPLES) if k != place]
                far.append([(anchor @ rows[others[int(k)]] / temperature).exp() for k in draws[row]])
            every = [*near, *(one for some in far for one in some)]
            z = torch.stack(every).mean().detach() * SAMPLES if every else torch.ones(())
            share = negatives / SAMPLES
            for one, some in zip(near, far, strict=True):
                total = total - (one / z / (one / z + share)).log()
                for other in some:
                    total = total - (share / (other / z + share)).log()
        return total / max(len(id), 1)

    return function


def unit(x: Tensor) -> Tensor:
    return x / x.square().sum().sqrt()


def vector(x: Tensor) -> Tensor:
    """A sample's vector [D], map [D, H, W] or states [L, D] as [D]."""
    return x if x.ndim == 1 else x.mean(dim=0) if x.ndim == 2 else x.flatten(1).mean(dim=1)


def make(student: Shape, teacher: Shape) -> Callable[[torch.Generator, int], tuple[list[Any], list[Any]]]:
    def draw(generator: torch.Generator, rows: int) -> tuple[list[Any], list[Any]]:
        id = torch.from_numpy(IDS)[torch.randperm(SAMPLES, generator=generator)[:rows]]
        features = [torch.randn(rows, *shape, generator=generator) for shape in (student, teacher)]
        return features[:1], [features[1], id]

    return draw


def case(name: str, student: Shape, teacher: Shape, training: bool = True, **options: Any) -> Case:
    functions = crd(student, teacher, training), reference(student, teacher, training)
    # The negatives are drawn row after row, so another order of the rows gives them others.
    return Case(name, *functions, make(student, teacher), options, permutes=False)


CASES = [
    case("crd", (4,), (9,), negatives=12),
    case("crd-maps", (4, 3, 2), (5, 2, 2), negatives=39, temperature=0.2),
    case("crd-states-against-vectors", (5, 4), (9,), negatives=1),
    case("crd-in-evaluation", (4,), (9,), training=False, negatives=12),
]
