"""Cases of the relational losses: loops over samples, pairs and triples, float64, scalars and math throughout."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import torch
from objective_case import Case
from torch import Tensor

from kdcache.objectives.cc import cc
from kdcache.objectives.irg import irg
from kdcache.objectives.pkt import pkt
from kdcache.objectives.rkd import rkd_angle, rkd_distance
from kdcache.objectives.sp import sp

__all__ = ["CASES"]

Shape = tuple[int, ...]
Made = tuple[list[Any], list[Any]]


def features(student: Shape, teacher: Shape) -> Callable[[torch.Generator, int], Made]:
    """About what layers give: not centred, some of it shared by all samples."""

    def make(generator: torch.Generator, rows: int) -> Made:
        def draw(shape: Shape) -> Tensor:
            return torch.randn(rows, *shape, generator=generator) + 0.5 * torch.randn(shape, generator=generator)

        return [draw(student)], [draw(teacher)]

    return make


def graphs(student: list[Shape], teacher: list[Shape], classes: int) -> Callable[[torch.Generator, int], Made]:
    def make(generator: torch.Generator, rows: int) -> Made:
        sides = [
            [torch.randn(rows, *shape, generator=generator) for shape in [*side, (classes,)]]
            for side in (student, teacher)
        ]
        return [sides[0]], [sides[1]]

    return make


def huber(difference: Tensor) -> Tensor:
    return difference**2 / 2 if abs(difference.item()) < 1 else abs(difference) - 0.5


def length(vector: Tensor) -> Tensor:
    return (vector * vector).sum().sqrt()


def dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum()


def rows_of(feature: Tensor) -> list[Tensor]:
    return [row.reshape(-1) for row in feature]


def table(rows: list[Tensor], relation: Callable[[Tensor, Tensor], Tensor]) -> list[list[Tensor]]:
    return [[relation(a, b) for b in rows] for a in rows]


def mean_of(ours: list[list[Tensor]], theirs: list[list[Tensor]], term: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    flat = [term(a, b) for mine, other in zip(ours, theirs, strict=True) for a, b in zip(mine, other, strict=True)]
    return torch.stack(flat).sum() / len(flat)


def squared(a: Tensor, b: Tensor) -> Tensor:
    return (a - b) ** 2


def distance_reference(student: Tensor, teacher: Tensor) -> Tensor:
    relations = []
    for rows in (rows_of(student), rows_of(teacher)):
        found = table(rows, lambda a, b: length(a - b) if a is not b else a.new_zeros(()))
        apart = [d for number, line in enumerate(found) for other, d in enumerate(line) if number != other]
        mean = torch.stack(apart).sum() / len(apart)
        relations.append([[d / mean for d in line] for line in found])
    return mean_of(relations[0], relations[1], lambda a, b: huber(a - b))


def angle_reference(student: Tensor, teacher: Tensor) -> Tensor:
    sides = [rows_of(student), rows_of(teacher)]
    total = torch.zeros((), dtype=torch.float64)
    for j in range(len(student)):
        arms = [{i: (row - x[j]) / length(row - x[j]) for i, row in enumerate(x) if i != j} for x in sides]
        for i, k in itertools.combinations(arms[0], 2):
            # (k, j, i) is the same, and what is left out has the same cosine on both sides, 0 or 1.
            total = total + 2 * huber(dot(arms[0][i], arms[0][k]) - dot(arms[1][i], arms[1][k]))
    return total / len(student) ** 3


def cc_reference(
    student: Tensor, teacher: Tensor, *, kernel: str = "gaussian", gamma: float = 0.4, order: int = 2
) -> Tensor:
    def relation(a: Tensor, b: Tensor) -> Tensor:
        cosine = dot(a / length(a), b / length(b))
        if kernel == "bilinear":
            return cosine
        terms = [(2 * gamma) ** p / math.factorial(p) * cosine**p for p in range(order + 1)]
        return math.exp(-2 * gamma) * sum(terms)  # type: ignore[return-value]

    return mean_of(table(rows_of(student), relation), table(rows_of(teacher), relation), squared)


def sp_reference(student: Tensor, teacher: Tensor) -> Tensor:
    grams = [table(rows_of(feature), dot) for feature in (student, teacher)]
    ours, theirs = ([[value / length(torch.stack(line)) for value in line] for line in gram] for gram in grams)
    return mean_of(ours, theirs, squared)


def pkt_reference(student: Tensor, teacher: Tensor) -> Tensor:
    sides = []
    for feature in (student, teacher):
        kernel = table(rows_of(feature), lambda a, b: (dot(a, b) / (length(a) * length(b)) + 1) / 2)
        sides.append([[value / sum(line) for value in line] for line in kernel])
    return mean_of(sides[0], sides[1], lambda q, p: p * torch.log((p + 1e-7) / (q + 1e-7)))


def irg_reference(
    students: list[Tensor],
    teachers: list[Tensor],
    *,
    w_vertex: float = 0.1,
    w_edge: float = 5.0,
    w_transform: float = 5.0,
) -> Tensor:
    logits = [rows_of(side[-1].unsqueeze(2)) for side in (students, teachers)]
    vertices = torch.stack([squared(a, b).mean() for a, b in zip(*logits, strict=True)]).mean()
    edges, steps = [], []
    for ours, theirs in zip(students[:-1], teachers[:-1], strict=True):
        tables = []
        for feature in (ours, theirs):
            found = table(rows_of(feature), lambda a, b: ((a - b) ** 2).sum())
            largest = max(max(line) for line in found)
            tables.append([[value / largest for value in line] for line in found])
        edges.append(mean_of(tables[0], tables[1], squared))
    for number in range(len(students) - 2):
        pair = [(side[number], side[number + 1]) for side in (students, teachers)]
        if any(x.ndim != y.ndim for x, y in pair):
            continue
        sides = []
        for x, y in pair:
            found = [((a - b) ** 2).sum() for a, b in zip(*matched(x, y), strict=True)]
            sides.append([[value / max(found) for value in found]])
        steps.append(mean_of(sides[0], sides[1], squared))
    return w_vertex * vertices + w_edge * sum(edges) / len(edges) + w_transform * sum(steps) / len(steps)


def matched(x: Tensor, y: Tensor) -> list[list[Tensor]]:
    """The rows of both at the smaller size along each axis, which here divides the larger."""
    size = [min(pair) for pair in zip(x.shape[1:], y.shape[1:], strict=True)]
    pooled = []
    for feature in (x, y):
        for axis, wanted in enumerate(size, 1):
            runs = feature.split(feature.shape[axis] // wanted, dim=axis)
            feature = torch.stack([sum(run.unbind(axis)) / run.shape[axis] for run in runs], dim=axis)
        pooled.append(rows_of(feature))
    return pooled


VECTORS, MAPS = features((6,), (9,)), features((3, 4, 4), (5, 2, 3))
TWO_MAPS = graphs([(2, 4, 4), (4, 2, 2)], [(3, 8, 4), (6, 4, 2)], 5)
MIXED = graphs([(4, 4, 4), (2, 4, 4), (3,)], [(2, 4, 2), (8, 2, 2), (7,)], 4)
LONG = graphs([(4,), (8,), (8,)], [(6,), (3,), (9,)], 3)

CASES = [
    Case("rkd-distance", rkd_distance, distance_reference, VECTORS, smallest=3),
    Case("rkd-distance-maps", rkd_distance, distance_reference, MAPS, smallest=3),
    Case("rkd-angle", rkd_angle, angle_reference, VECTORS, smallest=3),
    Case("rkd-angle-maps", rkd_angle, angle_reference, MAPS, smallest=3),
    Case("cc", cc, cc_reference, VECTORS, smallest=2),
    Case("cc-order", cc, cc_reference, VECTORS, {"gamma": 1.5, "order": 7}, smallest=2),
    Case("cc-bilinear-maps", cc, cc_reference, MAPS, {"kernel": "bilinear"}, smallest=2),
    Case("sp", sp, sp_reference, VECTORS, smallest=2),
    Case("sp-maps", sp, sp_reference, MAPS, smallest=2),
    Case("pkt", pkt, pkt_reference, VECTORS, smallest=2),
    Case("pkt-maps", pkt, pkt_reference, MAPS, smallest=2),
    Case("irg", irg, irg_reference, TWO_MAPS, smallest=3),
    Case("irg-mixed", irg, irg_reference, MIXED, {"w_vertex": 1.0, "w_edge": 2.0, "w_transform": 0.5}, smallest=3),
    Case("irg-vectors", irg, irg_reference, LONG, smallest=3),
]
