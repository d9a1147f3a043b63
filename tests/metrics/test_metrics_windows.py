"""Anomalies by windows: small series by hand, the threshold against trying them all, and real series."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from judged_rows import rows

from kdcache.errors import UsageError
from kdcache.metrics import Judged
from kdcache.metrics.windows import window_f1


def series(scores: str, label: str, part: str, number: str | None = None, shuffle: int | None = None) -> Judged:
    """One digit a row: the error of its forecast, its label (. for none), its part, its series."""
    off = torch.tensor([float(digit) for digit in scores])[:, None]
    fields = {
        "target": torch.zeros(len(scores), 1),
        "label": torch.tensor([-1 if digit == "." else int(digit) for digit in label]),
        "part": torch.tensor([int(digit) for digit in part]),
        "series": torch.tensor([int(digit) for digit in number or "0" * len(scores)]),
        "position": torch.arange(len(scores)) * 3,
    }
    order = torch.arange(len(scores))
    if shuffle is not None:
        order = torch.randperm(len(scores), generator=torch.Generator().manual_seed(shuffle))
    return rows({"logits": off[order]}, **{name: values[order] for name, values in fields.items()})


class TestByHand:
    # The usual score is that of the calibration rows labelled 0: 1 in both halves below.
    SCORES = "1111511" + "1616611141"
    LABEL = "0000100" + "0111000000"
    PART = "1111111" + "2222222222"

    def test_windows_and_alarms(self) -> None:
        """The threshold is in the middle between 1 and 5; in the test part one window of three rows is detected (two
        of its rows are above), and 6 (a run of one) and 4 are false alarms."""
        found = window_f1(series(self.SCORES, self.LABEL, self.PART))
        assert found["window_threshold"] == 3.0
        assert found["window_precision"] == pytest.approx(1 / 3)
        assert found["window_recall"] == 1.0
        assert found["window_f1"] == pytest.approx(0.5)

    def test_the_order_of_the_rows_does_not_matter(self) -> None:
        expected = window_f1(series(self.SCORES, self.LABEL, self.PART))
        assert window_f1(series(self.SCORES, self.LABEL, self.PART, shuffle=1)) == expected

    def test_the_test_part_does_not_move_the_threshold(self) -> None:
        found = window_f1(series("1111511" + "9999999999", self.LABEL, self.PART))
        assert found["window_threshold"] == 3.0
        # A window, a run on each side, and their 7 rows are two windows of three rows long.
        assert found["window_precision"] == pytest.approx(1 / 5)

    def test_an_endless_alarm_is_many(self) -> None:
        """Two windows of 5 rows in 100, everything above: three runs, and 90 rows, 18 windows long."""
        label = "0" * 20 + "11111" + "0" * 30 + "11111" + "0" * 40
        found = window_f1(series("1" * 10 + "9" * 100, "0" * 10 + label, "1" * 10 + "2" * 100))
        assert found["window_recall"] == 1.0
        assert found["window_precision"] == pytest.approx(2 / (2 + 3 + 18))

    def test_a_run_without_label_is_no_alarm(self) -> None:
        found = window_f1(series(self.SCORES, "0000100" + "0111.000.0", self.PART))
        assert found["window_precision"] == 1.0

    def test_a_missed_window(self) -> None:
        """Two windows, one of which is as usual."""
        found = window_f1(series("111151111811", "000010011011", "111111122222"))
        assert found == {
            "window_f1": 0.0,
            "window_precision": 0.0,
            "window_recall": 0.0,
            "window_threshold": 3.0,
        }

    def test_without_a_window_to_calibrate_on_it_is_the_quantile(self) -> None:
        judged = series("123419", "000010", "111122")
        found = window_f1(judged, quantile=0.5)
        assert found["window_threshold"] == pytest.approx(2.5 / 2.5)  # the middle of 1 to 4, by their mean
        assert found["window_recall"] == 0.0
        assert found["window_precision"] == 0.0

    def test_series_are_scaled_by_their_own_usual_score(self) -> None:
        """The second series is off by twice as much everywhere: 2 is usual there, and 3 is no anomaly in it."""
        found = window_f1(series("1151" + "131" + "22" + "393", "0010" + "010" + "00" + "010", "1111222" + "11222",
                                 "0000000" + "11111"))  # fmt: skip
        assert found["window_threshold"] == 3.0
        assert found["window_recall"] == 0.5  # 3 is not above 3; 9 / 2 is
        assert found["window_precision"] == 1.0

    def test_runs_end_with_their_series(self) -> None:
        """The window at the end of one series and that at the beginning of the next are two."""
        found = window_f1(series("1191" + "19" + "11" + "91", "0010" + "01" + "00" + "10", "1111" + "22" + "11" + "22",
                                 "000000" + "1111"))  # fmt: skip
        assert found["window_recall"] == 1.0
        assert found["window_f1"] == 1.0

    def test_smoothing_is_the_mean_of_the_last_ones(self) -> None:
        """A single 5 is 3 in the mean of two, (1 + 5) / 2, at that row and the next: a run outside the window too."""
        found = window_f1(series("11111551" + "15" + "1", "00000110" + "01" + "0", "11111111222"), smoothing=2)
        # usual: the calibration rows labelled 0 are 1, 1, 1, 1, 1 and (5 + 1) / 2
        assert found["window_threshold"] == pytest.approx((3.0 + 5.0) / 2 / (8 / 6))
        assert found["window_recall"] == 0.0


@pytest.mark.parametrize("seed", range(5))
def test_no_other_threshold_has_a_higher_f1_on_the_calibration_part(seed: int) -> None:
    """Judged with the calibration part as the test part, by a loop over the rows at every threshold."""
    random = np.random.default_rng(seed)
    count = 300
    label = np.zeros(count, dtype=int)
    for start in (40, 120, 200):
        label[start : start + 15] = 1
    scores = random.gamma(2.0, size=count) + 2.5 * label * random.random(count)
    both = {
        "target": torch.zeros(2 * count, 1),
        "label": torch.tensor(np.concatenate([label, label])),
        "part": torch.tensor([1] * count + [2] * count),
        "series": torch.zeros(2 * count, dtype=torch.long),
        "position": torch.arange(2 * count),
    }
    off = torch.tensor(np.concatenate([scores, scores]), dtype=torch.float32)[:, None]
    found = window_f1(rows({"logits": off}, **both))
    scaled = off[:count, 0].double().numpy()
    scaled = scaled / scaled[label == 0].mean()

    def f1(threshold: float) -> float:
        detected, alarms, row = 0, 0, 0
        for first, last in ((40, 55), (120, 135), (200, 215)):
            detected += any(scaled[row] > threshold for row in range(first, last))
        for row in range(count):
            starts = row == 0 or label[row - 1] or scaled[row - 1] <= threshold
            alarms += not label[row] and scaled[row] > threshold and starts
        alarms += int((scaled[label == 0] > threshold).sum()) // 15
        return 2 * detected / (detected + alarms + 3)

    assert found["window_f1"] == pytest.approx(max(f1(threshold) for threshold in scaled))
    assert found["window_f1"] == pytest.approx(f1(found["window_threshold"]))


def test_a_perfect_forecast_is_no_division_by_zero() -> None:
    found = window_f1(series("000000", "000010", "111222"))
    assert all(math.isfinite(value) for value in found.values())
    assert found["window_recall"] == 0.0


@pytest.mark.parametrize(
    ("scores", "label", "part", "options", "message"),
    [
        ("1111", "0000", "1122", {}, "the test part has no window"),
        ("1111", "0001", "1111", {}, "no row is of part 1"),
        ("1111", "1101", "1122", {}, "series 0 has no calibration row"),
        ("1111", "0001", "1122", {"smoothing": 0}, "smoothing = 0"),
        ("1111", "0001", "1122", {"quantile": 0.0}, r"quantile = 0\.0"),
    ],
)
def test_what_cannot_be_judged(scores: str, label: str, part: str, options: dict[str, float], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        window_f1(series(scores, label, part), **options)


def test_forecasts_that_are_not_numbers() -> None:
    judged = series("1111", "0001", "1122")
    broken = {"logits": judged.outputs["logits"].clone().index_fill_(0, torch.tensor([2]), math.nan)}
    with pytest.raises(UsageError, match="1 forecasts or targets are NaN or infinite"):
        window_f1(rows(broken, **judged.rows))
    with pytest.raises(UsageError, match=r"the output is \[4, 2\] and the target \[4, 1\]"):
        window_f1(rows({"logits": torch.zeros(4, 2)}, **judged.rows))
