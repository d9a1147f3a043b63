"""What parts of a global batch weigh: whatever the cut, together they give the mean over all of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from student_runs import KD, small

from kdcache.student import read_metrics
from kdcache.student.shares import cuts, part_factors


@given(
    scored=st.lists(st.integers(0, 9), min_size=1, max_size=40),
    world=st.integers(1, 4),
    parts=st.integers(1, 6),
    seed=st.integers(0, 99),
)
def test_parts_together_are_the_mean_of_the_whole(scored: list[int], world: int, parts: int, seed: int) -> None:
    counts = np.array(scored, np.int32)
    values = np.random.default_rng(seed).normal(size=len(counts))  # one a row: the mean over its labels
    by_label = by_row = 0.0
    for rank in range(world):
        mine, own = counts[rank::world], values[rank::world]
        factors = part_factors(counts, (True, False), rank, world, parts)
        for (first, last), (label, row) in zip(cuts(len(mine), parts), factors, strict=True):
            n, part = mine[first:last], own[first:last]
            by_label += label / world * ((part * n).sum() / max(n.sum(), 1))
            by_row += row / world * (part.mean() if len(part) else 0.0)
    assert by_row == pytest.approx(values.mean(), abs=1e-12)
    assert by_label == pytest.approx((values * counts).sum() / max(counts.sum(), 1), abs=1e-12)


def test_one_part_of_one_process_has_the_factor_one() -> None:
    assert part_factors(np.array([1, 0, 1], np.int32), (True, False), 0, 1, 1) == [(1.0, 1.0)]


def test_cross_entropy_of_few_labels_is_the_same_in_micro_batches(digits_store: Path, tmp_path: Path) -> None:
    """300 of the 1400 rows have a label, so micro-batches of 16 have between none and a dozen."""
    options: dict[str, Any] = {"optimizer": "sgd", "lr": 0.05, "objective": KD}
    small(digits_store, tmp_path / "whole", **options)
    small(digits_store, tmp_path / "parts", accumulate=4, **options)
    a, b = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "parts"))
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=1e-3, atol=1e-5)
    one, other = (read_metrics(tmp_path / name)[-1]["terms"] for name in ("whole", "parts"))
    assert one == pytest.approx(other, rel=1e-5)
