"""Training curves over seeds, from the rows of metrics.jsonl."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = ["Band", "Series", "band", "series", "thin"]


class Series(NamedTuple):
    """One seed: float64 [P] optimiser steps, ascending, and values."""

    steps: NDArray[np.float64]
    values: NDArray[np.float64]


class Band(NamedTuple):
    """Several seeds: mean and sample standard deviation, float64 [P], on the steps that every seed reached."""

    steps: NDArray[np.float64]
    mean: NDArray[np.float64]
    sd: NDArray[np.float64]


def series(rows: Sequence[Mapping[str, Any]], split: str, key: str) -> Series:
    """What `key` ("loss", "accuracy") was on `split`; a step logged twice (after a resume) counts once, the last."""
    found: dict[float, float] = {}
    for row in rows:
        value, step = row.get(key), row.get("step")
        if (
            row.get("split") == split
            and isinstance(value, (int, float))
            and isinstance(step, (int, float))
            and math.isfinite(value)
        ):
            found[float(step)] = float(value)
    steps = sorted(found)
    return Series(np.array(steps, dtype=np.float64), np.array([found[step] for step in steps], dtype=np.float64))


def thin(curve: Series, limit: int = 100) -> Series:
    """At most `limit` points: means of neighbouring ones, so that no spike is picked or lost by chance."""
    if len(curve.steps) <= limit:
        return curve
    cut = np.linspace(0, len(curve.steps), limit + 1).astype(np.int64)
    size = np.diff(cut)
    return Series(np.add.reduceat(curve.steps, cut[:-1]) / size, np.add.reduceat(curve.values, cut[:-1]) / size)


def band(curves: Sequence[Series]) -> Band | None:
    """Mean and spread where all seeds have values (early stopping ends them apart), by linear interpolation."""
    present = [curve for curve in curves if len(curve.steps)]
    if not present:
        return None
    first, last = max(c.steps[0] for c in present), min(c.steps[-1] for c in present)
    steps = np.unique(np.concatenate([c.steps for c in present]))
    steps = steps[(steps >= first) & (steps <= last)]
    if not len(steps):
        return None
    values = np.stack([np.interp(steps, c.steps, c.values) for c in present])
    sd = values.std(axis=0, ddof=1) if len(present) > 1 else np.zeros(len(steps))
    return Band(steps, values.mean(axis=0), sd)
