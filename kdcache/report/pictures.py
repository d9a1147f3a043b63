"""Which pictures a run's report gets, and what is said under each."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from kdcache.report import plots
from kdcache.report.curves import series
from kdcache.report.measure import measure_of
from kdcache.report.page import Picture
from kdcache.report.statistics import confidence_histogram, confusion
from kdcache.report.svg import DARK, LIGHT, Palette
from kdcache.report.wording import percent, visible

__all__ = ["pictures"]

CURVES = (
    ("val", "accuracy", "Accuracy while fitting", "On the held-out part of the training rows."),
    ("val", "perplexity", "Perplexity while fitting", "On the held-out part of the training rows; lower is better."),
    ("val", "loss", "Held-out loss", "On the held-out part of the training rows."),
    ("train", "loss", "Training loss", "On the batches themselves."),
    ("eval", "accuracy", "Accuracy on the evaluation rows", "Measured while fitting; never used to choose a step."),
)
SHOWN = len(LIGHT.series)  # curves of more students than this hide each other


def pictures(
    results: Mapping[str, Any],
    curves: Mapping[str, Sequence[Sequence[Mapping[str, Any]]]],
    teacher_probabilities_top: ArrayLike | None,
    predictions: Mapping[str, ArrayLike],
    labels: ArrayLike | None,
    class_names: Sequence[str],
) -> list[list[Picture]]:
    """Every picture for which there are numbers, in groups to be seen together; arguments as of `write_report`."""
    found = [*_by_seed(results), *_heat(results), *_training(results, curves)]
    if teacher_probabilities_top is not None:
        found += _confidence(results, teacher_probabilities_top)
    pair = [] if labels is None else _confusions(results, predictions, np.asarray(labels), class_names)
    return [group for group in (found, pair) if group]


def _both(paint: Callable[[Palette], str], title: str, caption: str, alt: str) -> Picture:
    return Picture(title, caption, alt, light=paint(LIGHT), dark=paint(DARK))


def _means(results: Mapping[str, Any]) -> dict[str, float]:
    students, key = results.get("students") or {}, measure_of(results).key
    return {name: student[key]["mean"] for name, student in students.items() if student.get(key)}


def _by_seed(results: Mapping[str, Any]) -> list[Picture]:
    measure = measure_of(results)
    key, word = measure.key, measure.key.capitalize()
    students = {name: results["students"][name][key]["seeds"] for name in _means(results)}
    if not students:
        return []
    baseline = ((results.get("baseline") or {}).get(key) or {}).get("seeds") or []
    teacher = (results.get("teacher") or {}).get(key)
    said = "; ".join(f"{visible(n)} {measure.form(mean)} {measure.unit}".strip() for n, mean in _means(results).items())
    lower = " Lower is better." if measure.lower_is_better else ""
    return [
        _both(
            lambda palette: plots.dots_by_seed(students, baseline, teacher, measure, palette),
            f"{word} by seed",
            "One dot for each seed, an upright for their mean, a band for ± one standard deviation. "
            f"The axis does not begin at zero.{lower}",
            f"{word} for each seed. Means: {said}.",
        )
    ]


def _heat(results: Mapping[str, Any]) -> list[Picture]:
    grid, means = results.get("grid") or {}, _means(results)
    axes = list((grid.get("axes") or {}).items())
    if len(axes) != 2 or measure_of(results).lower_is_better:  # the picture's colours say that more is better
        return []
    values = np.full([len(options) for _, options in axes], np.nan)
    for name, chosen in (grid.get("cells") or {}).items():
        place = tuple(_place(axes[axis][1], option) for axis, option in enumerate(chosen[:2]))
        if name in means and len(place) == 2 and None not in place:
            values[place] = 100 * means[name]
    if np.isnan(values).all():
        return []
    return [
        _both(
            lambda palette: plots.grid_heat(axes, values, palette),
            "Accuracy over the grid",
            "Mean over seeds, in %. Every cell was fitted from the same store.",
            f"Mean accuracy over {visible(axes[0][0])} and {visible(axes[1][0])}, as in the table.",
        )
    ]


def _place(options: Sequence[Any], option: Any) -> int | None:
    return options.index(option) if option in options else None


def _training(results: Mapping[str, Any], curves: Mapping[str, Any]) -> list[Picture]:
    means = _means(results)
    students = [name for name in curves if name not in ("baseline", "teacher")]
    sign = 1.0 if measure_of(results).lower_is_better else -1.0
    kept = sorted(students, key=lambda name: sign * means.get(name, 0.0))[:SHOWN]
    chosen = {
        name: curves[name]
        for name in dict.fromkeys([*means, *curves])
        if name in curves and (name in kept or name not in students)
    }
    left_out = f" Shown: the {SHOWN} best of {len(students)} students." if len(students) > SHOWN else ""
    found = []
    for split, key, title, said in CURVES:
        if not any(len(series(rows, split, key).steps) > 1 for runs in chosen.values() for rows in runs):
            continue
        scales = " Losses of different objectives are on different scales." if key == "loss" and len(chosen) > 1 else ""

        def paint(palette: Palette, split: str = split, key: str = key) -> str:
            return plots.training_curves(chosen, split, key, palette)

        found.append(
            _both(
                paint,
                title,
                f"{said} Mean over seeds, band ± one standard deviation, single seeds thin.{scales}{left_out}",
                f"{title} over optimiser steps for {', '.join(map(visible, chosen))}.",
            )
        )
    return found


def _confidence(results: Mapping[str, Any], top: ArrayLike) -> list[Picture]:
    counts, edges = confidence_histogram(top)
    if not counts.sum():
        return []
    mean = float(np.mean(np.asarray(top, dtype=np.float64)))
    error = (results.get("teacher") or {}).get("calibration_error")
    measured = "" if error is None else f" Expected calibration error on the evaluation rows: {percent(error)} %."
    return [
        _both(
            lambda palette: plots.confidence_bars(counts, edges, mean, palette),
            "How sure the teacher is",
            f"Top-1 probability on {counts.sum():,} rows of the store. Where all of it stands at 1, soft labels "
            f"say little more than hard ones.{measured}",
            f"Histogram of the teacher's confidence, mean {mean:.3f}.",
        )
    ]


def _confusions(
    results: Mapping[str, Any], predictions: Mapping[str, ArrayLike], labels: NDArray[Any], class_names: Sequence[str]
) -> list[Picture]:
    means = _means(results)
    students = [name for name in predictions if name not in ("baseline", "teacher")]
    best = max(students, key=lambda name: means.get(name, 0.0), default=None)
    shown = [name for name in ("teacher", best) if name is not None and name in predictions]
    if not shown or not (labels >= 0).any():
        return []
    classes = max(len(class_names), int(labels.max()) + 1, *(int(np.max(predictions[name])) + 1 for name in shown))
    names = class_names if len(class_names) == classes else ()
    found = []
    for name in shown:
        counts = confusion(predictions[name], labels, classes)
        who = "the teacher" if name == "teacher" else "the student" if len(means) == 1 else visible(name)

        def paint(palette: Palette, counts: NDArray[np.int64] = counts) -> str:
            return plots.confusion_matrix(counts, names, palette)

        found.append(
            _both(
                paint,
                f"What {who} confuses",
                "Of each true class (row), the share in % given to each class.",
                f"Confusion matrix of {who}; {percent(np.trace(counts) / counts.sum())} % on the diagonal.",
            )
        )
    return found
