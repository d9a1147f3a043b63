"""The numbers of a report, from plain arrays: spread over seeds, paired gains, confusion, confidence, calibration."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from kdcache.errors import UsageError

__all__ = ["agreement", "calibration_error", "confidence_histogram", "confusion", "paired", "summarise"]

BINS = 20


def summarise(values: Sequence[float]) -> dict[str, Any]:
    """{"mean", "sd", "seeds": the values}; sd is the sample standard deviation (n - 1), and 0.0 for a single value.

    That 0.0 means "no spread was measured", not "no spread": `paired` therefore gives no `in_sds` for it.
    """
    numbers = _finite(values, "values over seeds")
    spread = float(np.std(numbers, ddof=1)) if len(numbers) > 1 else 0.0
    return {"mean": float(np.mean(numbers)), "sd": spread, "seeds": numbers.tolist()}


def paired(student: Sequence[float], baseline: Sequence[float]) -> dict[str, Any]:
    """The gain of a student over the baseline, seed by seed: `summarise` of the differences, and `in_sds`.

    `in_sds` = mean difference / max(sd of the student, sd of the baseline); None where neither has any spread.
    """
    if len(student) != len(baseline):
        raise UsageError(
            f"gain: {len(student)} student runs against {len(baseline)} baseline runs; fit both over the same seeds"
        )
    ours, theirs = summarise(student), summarise(baseline)
    gain = summarise([a - b for a, b in zip(ours["seeds"], theirs["seeds"], strict=True)])
    spread = max(ours["sd"], theirs["sd"])
    return {**gain, "in_sds": gain["mean"] / spread if spread > 0 else None}


def confusion(predictions: ArrayLike, labels: ArrayLike, classes: int) -> NDArray[np.int64]:
    """int64 [classes, classes] counts, rows = label, columns = prediction; rows with label -1 are left out."""
    guessed, truth = _pair(predictions, labels, "labels")
    known = truth != -1
    guessed, truth = guessed[known], truth[known]
    for name, values in (("predictions", guessed), ("labels", truth)):
        if values.size and not 0 <= values.min() <= values.max() < classes:
            raise UsageError(
                f"confusion: {name} span {values.min()}..{values.max()}, but there are {classes} classes; "
                "evaluate on a source with the same classes"
            )
    counts = np.bincount(truth * classes + guessed, minlength=classes * classes)
    return counts.reshape(classes, classes).astype(np.int64)


def confidence_histogram(confidence: ArrayLike, bins: int = BINS) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """(counts [bins], edges [bins + 1]) of top-1 probabilities on [0, 1]; the last bin includes 1."""
    counts, edges = np.histogram(_probabilities(confidence), bins=bins, range=(0.0, 1.0))
    return counts.astype(np.int64), edges.astype(np.float64)


def calibration_error(confidence: ArrayLike, correct: ArrayLike, bins: int = BINS) -> float:
    """Expected calibration error: sum over bins of (rows in bin / rows) * |accuracy - mean confidence| in the bin.

    Guo et al. 2017, "On Calibration of Modern Neural Networks", eq. 3, with `bins` equal bins on [0, 1].
    """
    probability, right = _probabilities(confidence), np.asarray(correct, dtype=np.float64)
    if probability.shape != right.shape:
        raise UsageError(
            f"calibration: {probability.size} confidences against {right.size} outcomes; give both for the same rows"
        )
    if not probability.size:
        raise UsageError("calibration: no rows; give at least one")
    bin_of = np.minimum((probability * bins).astype(np.int64), bins - 1)
    gap = np.bincount(bin_of, weights=right - probability, minlength=bins)
    return float(np.abs(gap).sum() / probability.size)


def agreement(student: ArrayLike, teacher: ArrayLike) -> float:
    """Share of rows on which two networks predict the same class, right or wrong."""
    ours, theirs = _pair(student, teacher, "teacher's predictions")
    if not ours.size:
        raise UsageError("agreement: no rows; give at least one")
    return float(np.mean(ours == theirs))


def _finite(values: ArrayLike, what: str) -> NDArray[np.float64]:
    numbers = np.asarray(values, dtype=np.float64).reshape(-1)
    if not numbers.size or not np.isfinite(numbers).all():
        raise UsageError(f"{what}: {numbers.tolist()[:8]}; give at least one, all of them finite")
    return numbers


def _probabilities(values: ArrayLike) -> NDArray[np.float64]:
    numbers = np.asarray(values, dtype=np.float64).reshape(-1)
    slack = 1e-3  # a softmax in half precision sums to one only so well
    if not (np.isfinite(numbers) & (numbers >= -slack) & (numbers <= 1 + slack)).all():
        raise UsageError("confidence: some values lie outside [0, 1]; give probabilities, not logits")
    return np.clip(numbers, 0.0, 1.0)


def _pair(predictions: ArrayLike, others: ArrayLike, name: str) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    first, second = (np.asarray(part, dtype=np.int64).reshape(-1) for part in (predictions, others))
    if first.shape != second.shape:
        raise UsageError(f"{first.size} predictions against {second.size} {name}; give both for the same rows")
    return first, second
