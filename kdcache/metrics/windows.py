"""Anomalies of series by windows, from how far a forecast (or a reconstruction) is off.

The score of a row is the mean of |target - output| over the target's values; within its series it may be smoothed by
the mean of the last `smoothing` rows (it never looks ahead), and it is divided by the series' mean score over the
calibration rows outside any window, since series differ in how well they can be forecast. A row is above where its
score is larger than the threshold. Rows of a series are taken in the order of `position`, each part by itself.

A window is a run of rows labelled 1. It is detected if any row inside is above. Each run of rows above outside any
window is a false alarm, and so is every further stretch of above rows that is in all as long as the part's windows are
on average; without that, an alarm that never ends would detect everything at the cost of a few long runs. Rows without
a label (-1) are neither. This counts windows and alarms, where NAB's own score also rewards early detection (Lavin &
Ahmad 2015).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from kdcache.errors import UsageError
from kdcache.metrics.judged import Judged

__all__ = ["window_f1"]

CALIBRATION, TEST = 1, 2  # of the field `part`; 0 is what was fitted on
Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


def window_f1(judged: Judged, *, smoothing: int = 1, quantile: float = 0.999) -> dict[str, float]:
    """{"window_f1", "window_precision", "window_recall", "window_threshold"} on the test part.

    Precision is detected windows / (detected windows + false alarms), recall detected windows / windows, F1 their
    harmonic mean; 0 where nothing is above. The threshold, one for all series, is chosen on the calibration part only:
    where F1 is highest there (the middle of the highest such interval between scores), or, if that part has no window,
    the `quantile` of its scores. Fields: target, series, position, part (1 calibration, 2 test), label (1 anomaly).
    """
    if smoothing < 1 or not 0 < quantile <= 1:
        raise UsageError(f"window_f1: smoothing = {smoothing}, quantile = {quantile}: at least 1; above 0, at most 1")
    series, position, part, label = (_ints(judged, name) for name in ("series", "position", "part", "label"))
    order = np.lexsort((position, series))
    series, part, label = series[order], part[order], label[order]
    scores = _smoothed(_errors(judged)[order], series, smoothing)
    scores = scores / _usual(scores, series, (part == CALIBRATION) & (label == 0))[series]
    calibration = _stretch(part == CALIBRATION, scores, series, label)
    test = _stretch(part == TEST, scores, series, label)
    if not len(test.windows):
        raise UsageError("window_f1: the test part has no window (label 1), so there is nothing to detect")
    threshold = _best(calibration) if len(calibration.windows) else float(np.quantile(calibration.scores, quantile))
    detected, alarms = (int(count[0]) for count in _counts(test, np.array([threshold])))
    return {
        "window_f1": 2 * detected / (detected + alarms + len(test.windows)),
        "window_precision": detected / max(detected + alarms, 1),
        "window_recall": detected / len(test.windows),
        "window_threshold": threshold,
    }


class _Stretch(NamedTuple):
    """One part of all series: all scores; each window's highest, and the windows' mean length in rows; the scores
    outside windows, and for each pair of neighbours among these the smaller one."""

    scores: Floats
    windows: Floats
    length: float
    outside: Floats
    pairs: Floats


def _stretch(chosen: NDArray[np.bool_], scores: Floats, series: Ints, label: Ints) -> _Stretch:
    scores, series, label = scores[chosen], series[chosen], label[chosen]
    if not len(scores):
        raise UsageError("window_f1: no row is of part 1 (calibration), or none of part 2 (test)")
    goes_on = (series[1:] == series[:-1]) & (label[1:] == label[:-1])
    inside, outside = label == 1, label == 0
    first = inside & np.concatenate([[True], ~goes_on])
    highest = np.full(int(first.sum()), -np.inf)
    np.maximum.at(highest, np.cumsum(first)[inside] - 1, scores[inside])
    pairs = np.minimum(scores[1:], scores[:-1])[goes_on & outside[1:]]
    length = int(inside.sum()) / max(len(highest), 1)
    return _Stretch(scores, np.sort(highest), length, np.sort(scores[outside]), np.sort(pairs))


def _counts(stretch: _Stretch, thresholds: Floats) -> tuple[Ints, Ints]:
    """Detected windows and false alarms at each threshold, of a part that has windows."""

    def above(values: Floats) -> Ints:
        return len(values) - np.searchsorted(values, thresholds, side="right").astype(np.int64)

    rows = above(stretch.outside)
    runs = rows - above(stretch.pairs)  # a run has one row more than it has pairs
    return above(stretch.windows), runs + (rows / stretch.length).astype(np.int64)


def _best(stretch: _Stretch) -> float:
    """The middle of the highest interval of thresholds at which F1 is highest."""
    edges = np.unique(stretch.scores)  # all thresholds from one edge up to the next do the same
    detected, alarms = _counts(stretch, edges)
    f1 = 2 * detected / (detected + alarms + len(stretch.windows))
    last = len(f1) - 1 - int(np.argmax(f1[::-1] == f1.max()))
    first = last
    while first and f1[first - 1] == f1[last]:
        first -= 1
    return float((edges[first] + edges[min(last + 1, len(edges) - 1)]) / 2)


def _errors(judged: Judged) -> Floats:
    found, target = judged.output().detach(), judged.row("target")
    if len(found) != len(target) or found.numel() != target.numel():
        raise UsageError(f"window_f1: the output is {list(found.shape)} and the target {list(target.shape)}")
    off = (found.reshape(target.shape).double() - target.double()).abs()
    scores: Floats = off.reshape(len(target), -1).mean(dim=1).numpy()
    if not np.isfinite(scores).all():
        raise UsageError(f"window_f1: {int((~np.isfinite(scores)).sum())} forecasts or targets are NaN or infinite")
    return scores


def _smoothed(scores: Floats, series: Ints, count: int) -> Floats:
    """The mean of the last `count` scores of the series, of fewer at its beginning; series in one piece each."""
    if count == 1:
        return scores
    row = np.arange(len(scores))
    start = np.maximum.accumulate(np.where(np.concatenate([[True], series[1:] != series[:-1]]), row, 0))
    first = np.maximum(start, row + 1 - count)
    total = np.concatenate([[0.0], np.cumsum(scores)])
    found: Floats = (total[row + 1] - total[first]) / (row + 1 - first)
    return found


def _usual(scores: Floats, series: Ints, chosen: NDArray[np.bool_]) -> Floats:
    """Each series' mean over the chosen rows, by its number; 1 where that is 0."""
    size = int(series.max()) + 1
    counts = np.bincount(series[chosen], minlength=size)
    without = np.setdiff1d(series, np.flatnonzero(counts))
    if len(without):
        raise UsageError(f"window_f1: series {int(without[0])} has no calibration row (part 1) outside windows")
    means: Floats = np.bincount(series[chosen], weights=scores[chosen], minlength=size) / np.maximum(counts, 1)
    return np.where(means > 0, means, 1.0)


def _ints(judged: Judged, name: str) -> Ints:
    values = judged.row(name)
    if values.ndim != 1 or values.is_floating_point():
        raise UsageError(f"window_f1: {name} is {values.dtype} {list(values.shape)}; integers [N] are needed")
    found: Ints = values.long().numpy()
    if name == "series" and (len(found) == 0 or found.min() < 0):
        raise UsageError("window_f1: series are numbered from 0, and there has to be one")
    return found
