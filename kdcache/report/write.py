"""From a run's results to `report.html`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from numpy.typing import ArrayLike

from kdcache.report.page import write_page

__all__ = ["write_report"]


def write_report(
    out_dir: Path,
    results: Mapping[str, Any],
    *,
    curves: Mapping[str, Sequence[Sequence[Mapping[str, Any]]]],
    teacher_probabilities_top: ArrayLike | None = None,
    predictions: Mapping[str, ArrayLike] | None = None,
    labels: ArrayLike | None = None,
    class_names: Sequence[str] = (),
) -> Path:
    """Write `out_dir/report.html`, one file that needs nothing else, and return its path.

    `results` is results.json. `curves` gives for each name the rows of metrics.jsonl, one list a seed, and
    `predictions` int [N] for the N evaluation rows of `labels`; in both, "teacher" and "baseline" name those two and
    anything else a student. `teacher_probabilities_top`: top-1 probabilities at T = 1 of the store's rows.
    """
    from kdcache.report.pictures import pictures  # matplotlib takes a second to load

    found = pictures(results, curves, teacher_probabilities_top, predictions or {}, labels, class_names)
    path = Path(out_dir) / "report.html"
    write_page(path, results, found)
    return path
