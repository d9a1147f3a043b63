"""What a stage's process tells the one that started it: a few small tuples a second, through a queue."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

from kdcache.student.progress import Progress

__all__ = ["DumpWatch", "FitWatch", "Report"]

# (done, total, unit, note): how far the stage is, and a few words such as the last accuracy.
Report = Callable[[int, int, str, str], None]
_INTERVAL = 0.2


class DumpWatch:
    """A dump's progress, thinned out."""

    def __init__(self, report: Report) -> None:
        self._report, self._last = report, 0.0
        self._rows = self._done = self._bytes = 0

    def begin(self, rows: int, done: int) -> None:
        """`rows` in the store, `done` of them committed before."""
        self._rows, self._done = rows, done
        self._tell()

    def advance(self, rows: int) -> None:
        """So many more rows have been through the teacher."""
        self._done += rows
        if self._done >= self._rows or time.monotonic() - self._last > _INTERVAL:
            self._tell()

    def written(self, size: int) -> None:
        """A unit of `size` bytes was committed."""
        self._bytes += size

    def _tell(self) -> None:
        self._last = time.monotonic()
        self._report(self._done, self._rows, "samples", f"{self._bytes / 1e6:.1f} MB written")


class FitWatch(Progress):
    """A fit's progress, thinned out."""

    def __init__(self, report: Report) -> None:
        self._report, self._last = report, 0.0
        self._steps, self._note = 0, ""

    def started(self, place: str, step: int, steps: int, rows: int) -> None:
        self._steps = steps
        self._report(step, steps, "steps", "")

    def stepped(self, step: int) -> None:
        if step == self._steps or time.monotonic() - self._last > _INTERVAL:
            self._last = time.monotonic()
            self._report(step, self._steps, "steps", self._note)

    def measured(self, step: int, epoch: int, split: str, metrics: Mapping[str, Any]) -> None:
        shown = [key for key in ("loss", "accuracy", "perplexity") if metrics.get(key) is not None]
        words = [f"{split} {key} {metrics[key]:.4f}" for key in shown]
        self._note = ", ".join(words)

    def said(self, line: str) -> None:
        self._report(-1, 0, "", line)
