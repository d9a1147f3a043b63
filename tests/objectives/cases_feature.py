"""Cases of the losses on directions and distances of features: channel by channel, pair by pair, in float64."""

from __future__ import annotations

import math
from itertools import product
from typing import Any

import torch
from feature_reference import Shape, built, draw, fresh, mean, mixed, shared, shrunk, weights
from objective_case import Case
from torch import Tensor

from kdcache.objectives.attention import attention
from kdcache.objectives.cosine import Cosine
from kdcache.objectives.feature import Hint, hint
from kdcache.objectives.nst import nst

__all__ = ["CASES"]

# hint


def hint_reference(student: Tensor, teacher: Tensor) -> Tensor:
    if student.ndim == 4:
        teacher = torch.stack([shrunk(image, tuple(student.shape[2:])) for image in teacher])
    return mean([(a - b) ** 2 for a, b in zip(student.flatten(), teacher.flatten(), strict=True)])


pooled_hint = built(Hint, [(3, 2, 3)], [(4,)], pool="attention")


def pooled_hint_reference(student: Tensor, teacher: Tensor) -> Tensor:
    query, weight, bias = weights(pooled_hint)
    rows = []
    for image, target in zip(student, teacher, strict=True):
        places = [image[:, y, x] for y, x in product(range(2), range(3))]
        shares = [torch.exp((query * place).sum() / math.sqrt(3)) for place in places]
        centre = torch.stack([share * place for share, place in zip(shares, places, strict=True)]).sum(0)
        rows.append(((mixed(centre / torch.stack(shares).sum(), weight, bias) - target) ** 2).sum() / 4)
    return mean(rows)


# attention


def attention_map(feature: Tensor, space: Shape, power: float, first: bool) -> Tensor:
    """Q of one map [D, H, W], or of an attention [H, W]."""
    if feature.ndim == 2:
        energy = shrunk(feature[None], space)
    elif first:
        energy = mean(list(shrunk(feature, space).abs() ** power))[None]
    else:
        energy = shrunk(mean(list(feature.abs() ** power))[None], space)
    return energy.flatten() / (energy.flatten() ** 2).sum().sqrt()


def attention_reference(
    student: Tensor, teacher: Tensor, power: float = 2, paper: bool = False, pooling: str = "attention"
) -> Tensor:
    rows = []
    for ours, theirs in zip(student, teacher, strict=True):
        space = shared(ours, theirs if theirs.ndim == 3 else theirs[None])
        first = pooling == "feature"
        apart = attention_map(ours, space, power, first) - attention_map(theirs, space, power, first)
        rows.append((apart**2).sum().sqrt() if paper else (apart**2).sum() / len(apart))
    return mean(rows)


def collapsed(generator: torch.Generator, rows: int) -> tuple[list[Any], list[Any]]:
    student = torch.randn(rows, 3, 4, 4, generator=generator)
    return [student], [torch.randn(rows, 5, 6, 5, generator=generator).square().mean(1)]


# nst


def nst_reference(student: Tensor, teacher: Tensor) -> Tensor:
    def kernel(one: list[Tensor], other: list[Tensor]) -> Tensor:
        return mean([(a * b).sum() ** 2 for a, b in product(one, other)])

    rows = []
    for ours, theirs in zip(student, teacher, strict=True):
        space = shared(ours, theirs)
        s, t = (
            [channel.flatten() / (channel**2).sum().sqrt() for channel in shrunk(image, space)]
            for image in (ours, theirs)
        )
        rows.append(kernel(s, s) + kernel(t, t) - 2 * kernel(s, t))
    return mean(rows)


# cosine


cosine_same = built(Cosine, [(4,)], [(4,)])
cosine_tokens = built(Cosine, [(3, 4)], [(3, 5)])
cosine_maps = built(Cosine, [(3, 4, 4)], [(3, 2, 5)])


def away(one: Tensor, other: Tensor) -> Tensor:
    return 1 - (one * other).sum() / ((one**2).sum() * (other**2).sum()).sqrt()


def cosine_reference(student: Tensor, teacher: Tensor) -> Tensor:
    return mean([away(s, t) for s, t in zip(student, teacher, strict=True)])


def cosine_tokens_reference(student: Tensor, teacher: Tensor) -> Tensor:
    weight, bias = weights(cosine_tokens)
    pairs = [(s, t) for row in zip(student, teacher, strict=True) for s, t in zip(*row, strict=True)]
    return mean([away(mixed(s, weight, bias), t) for s, t in pairs])


def cosine_maps_reference(student: Tensor, teacher: Tensor) -> Tensor:
    values = []
    for ours, theirs in zip(student, teacher, strict=True):
        ours, theirs = shrunk(ours, (2, 4)), shrunk(theirs, (2, 4))
        values += [away(ours[:, y, x], theirs[:, y, x]) for y, x in product(range(2), range(4))]
    return mean(values)


LARGER, SMALLER = (4, 5, 6), (3, 3, 4)
CASES: list[Case] = [
    Case("hint-vectors", hint, hint_reference, draw((4,), (4,))),
    Case("hint-maps", hint, hint_reference, draw((3, 2, 3), (3, 4, 5))),
    Case("hint-attention-pool", fresh(pooled_hint), pooled_hint_reference, draw((3, 2, 3), (4,))),
    Case("attention", attention, attention_reference, draw((3, 4, 4), (5, 4, 4))),
    Case("attention-of-small-numbers", attention, attention_reference, draw((3, 4, 4), (5, 4, 4), scale=1e-3)),
    Case("attention-larger-student", attention, attention_reference, draw(LARGER, SMALLER)),
    Case("attention-larger-teacher", attention, attention_reference, draw(SMALLER, LARGER)),
    Case("attention-power", attention, attention_reference, draw(LARGER, SMALLER), {"power": 3.0}),
    Case("attention-paper", attention, attention_reference, draw(LARGER, SMALLER), {"paper": True}),
    Case("attention-feature", attention, attention_reference, draw(SMALLER, LARGER), {"pooling": "feature"}),
    Case("attention-collapsed", attention, attention_reference, collapsed),
    Case("nst-by-positions", nst, nst_reference, draw((6, 2, 2), (5, 3, 2))),
    Case("nst-by-channels", nst, nst_reference, draw((2, 4, 4), (3, 4, 4))),
    Case("cosine-vectors", fresh(cosine_same), cosine_reference, draw((4,), (4,))),
    Case("cosine-tokens", fresh(cosine_tokens), cosine_tokens_reference, draw((3, 4), (3, 5))),
    Case("cosine-maps", fresh(cosine_maps), cosine_maps_reference, draw((3, 4, 4), (3, 2, 5))),
]
