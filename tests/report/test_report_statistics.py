"""Statistics against values computed by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdcache.errors import UsageError
from kdcache.report import agreement, calibration_error, confidence_histogram, confusion, paired, summarise


def test_mean_and_sample_standard_deviation_by_hand() -> None:
    # Deviations -1, 0, 1: sum of squares 2, divided by n - 1 = 2.
    assert summarise([1.0, 2.0, 3.0]) == {"mean": 2.0, "sd": 1.0, "seeds": [1.0, 2.0, 3.0]}


def test_a_single_seed_has_no_spread_and_no_ratio() -> None:
    assert summarise([0.5]) == {"mean": 0.5, "sd": 0.0, "seeds": [0.5]}
    assert paired([0.75], [0.5]) == {"mean": 0.25, "sd": 0.0, "seeds": [0.25], "in_sds": None}


def test_the_gain_is_paired_and_measured_in_the_larger_spread() -> None:
    gain = paired([5.0, 6.0, 7.0], [0.0, 2.0, 4.0])  # sds 1 and 2; differences 5, 4, 3
    assert gain == {"mean": 4.0, "sd": 1.0, "seeds": [5.0, 4.0, 3.0], "in_sds": 2.0}


@pytest.mark.parametrize(("ours", "theirs"), [([1.0], [1.0, 2.0]), ([], []), ([math.nan], [0.0])])
def test_gains_that_cannot_be_are_refused(ours: list[float], theirs: list[float]) -> None:
    with pytest.raises(UsageError):
        paired(ours, theirs)


def test_confusion_counts_by_label_and_prediction() -> None:
    counts = confusion([0, 1, 1, 2, 0], [0, 0, 1, 2, -1], 3)
    assert counts.tolist() == [[1, 1, 0], [0, 1, 0], [0, 0, 1]]


@pytest.mark.parametrize(("predictions", "labels"), [([3], [0]), ([0], [3]), ([-1], [0]), ([0], [0, 1])])
def test_confusion_of_other_classes_or_rows_is_refused(predictions: list[int], labels: list[int]) -> None:
    with pytest.raises(UsageError):
        confusion(predictions, labels, 3)


def test_confidences_at_the_edges_of_bins() -> None:
    counts, edges = confidence_histogram([0.0, 0.049, 0.05, 0.999, 1.0, 1.0004])
    assert (len(counts), edges[0], edges[-1]) == (20, 0.0, 1.0)
    assert {int(i): int(counts[i]) for i in np.nonzero(counts)[0]} == {0: 2, 1: 1, 19: 3}


def test_logits_are_not_confidences() -> None:
    with pytest.raises(UsageError, match="not logits"):
        confidence_histogram([0.2, 3.5])


def test_calibration_error_by_hand() -> None:
    # Bin of 0.9: 4 rows, 3 right, gap 0.15; bin of 0.6: 1 row, wrong, gap 0.6. (4 * 0.15 + 0.6) / 5 = 0.24.
    assert calibration_error([0.9, 0.9, 0.9, 0.9, 0.6], [1, 1, 1, 0, 0], bins=10) == pytest.approx(0.24)


def test_agreement_is_of_predictions_right_or_wrong() -> None:
    assert agreement([1, 2, 3, 4], [1, 2, 0, 0]) == 0.5
    with pytest.raises(UsageError, match="4 predictions against 1"):
        agreement([1, 2, 3, 4], [1])


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=50))
def test_no_confidence_is_lost(values: list[float]) -> None:
    assert confidence_histogram(values)[0].sum() == len(values)
    assert 0.0 <= calibration_error(values, [1] * len(values)) <= 1.0
