"""What each micro-batch of each process weighs in a step, so that all of them together give the global batch's mean.

A term of the objective is a mean over the rows that count for it: those with a label for one that reads labels, the
scored positions for a language model, all rows for the others. A part with n of the global batch's N such rows weighs
n / N, times the number of processes, over which gradients are averaged.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

__all__ = ["cuts", "part_factors"]


def cuts(rows: int, parts: int) -> list[tuple[int, int]]:
    """First and last + 1 of at most `parts` runs of nearly equal length, none of them empty; [(0, 0)] of no rows."""
    if parts == 1 or rows <= 1:
        return [(0, rows)]
    edges = [rows * i // parts for i in range(parts + 1)]
    return [(first, last) for first, last in pairwise(edges) if last > first]


def part_factors(
    scored: NDArray[np.int32], by_label: tuple[bool | None, ...], rank: int, world_size: int, parts: int
) -> list[tuple[float, ...]]:
    """For each micro-batch of this process the factor of every term; `by_label` says which terms count labels. None:
    every process has the whole global batch's term, so it weighs 1.

    `scored` int32 [rows of the global batch, in order] is how many labels each row has; this process has the rows
    rank, rank + world_size, ...
    """
    mine = scored[rank::world_size]
    total = max(int(scored.sum(dtype=np.int64)), 1), max(len(scored), 1)
    found = []
    for first, last in cuts(len(mine), parts):
        labels = int(mine[first:last].sum(dtype=np.int64)) * world_size / total[0]
        rows = (last - first) * world_size / total[1]
        found.append(tuple(1.0 if counts is None else labels if counts else rows for counts in by_label))
    return found
