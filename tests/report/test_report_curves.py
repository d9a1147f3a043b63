"""Training curves from rows of metrics.jsonl."""

from __future__ import annotations

import numpy as np
import pytest

from kdcache.report.curves import Series, band, series, thin


def test_rows_of_a_split_are_taken_in_order_and_repeats_once() -> None:
    rows = [
        {"step": 20, "split": "val", "loss": 2.0, "accuracy": 0.5},
        {"step": 10, "split": "val", "loss": 3.0},
        {"step": 20, "split": "train", "loss": 9.0},
        {"step": 20, "split": "val", "loss": 1.0},  # after a resume
        {"step": 30, "split": "val", "loss": float("nan")},
    ]
    curve = series(rows, "val", "loss")
    assert curve.steps.tolist() == [10, 20]
    assert curve.values.tolist() == [3.0, 1.0]
    assert series(rows, "val", "accuracy").values.tolist() == [0.5]


def test_the_band_ends_where_the_first_seed_stops() -> None:
    whole = band(
        [
            Series(np.array([0.0, 10.0, 20.0]), np.array([0.0, 1.0, 2.0])),
            Series(np.array([0.0, 10.0]), np.array([2.0, 3.0])),
        ]
    )
    assert whole is not None
    assert whole.steps.tolist() == [0.0, 10.0]
    assert whole.mean.tolist() == [1.0, 2.0]
    assert whole.sd == pytest.approx([2**0.5, 2**0.5])


def test_seeds_without_a_common_step_have_no_band() -> None:
    one, other = Series(np.array([0.0]), np.array([1.0])), Series(np.array([5.0]), np.array([1.0]))
    assert band([one, other]) is None
    assert band([]) is None


def test_thinning_keeps_the_mean() -> None:
    curve = Series(np.arange(1000.0), np.arange(1000.0) % 7)
    thinned = thin(curve, 100)
    assert len(thinned.steps) == 100
    assert thinned.values.mean() == pytest.approx(curve.values.mean())
    assert thin(curve, 1000) is curve
