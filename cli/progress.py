"""Progress of long work: live bars on a terminal, a plain line now and then in a log."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

__all__ = ["Bars"]

_LOG_SECONDS = 10.0


class Bars:
    """Named pieces of work side by side. `tell` may be called from any thread."""

    def __init__(self) -> None:
        self._console = Console(stderr=True)
        self._live = Progress(
            TextColumn("{task.description:<28}"),
            BarColumn(24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[unit]} {task.fields[rate]}"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
            console=self._console,
            transient=True,
            disable=not self._console.is_terminal,
        )
        self._tasks: dict[str, TaskID] = {}
        self._begun: dict[str, tuple[float, int]] = {}
        self._logged: dict[str, float] = {}

    def __enter__(self) -> Bars:
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.stop()

    def say(self, line: str) -> None:
        """A line that stays."""
        self._live.console.print(line, markup=False, highlight=False, soft_wrap=True)

    def tell(self, name: str, done: int, total: int, unit: str, note: str = "") -> None:
        """How far a piece of work is; the rate counts from the first call."""
        now = time.monotonic()
        start, first = self._begun.setdefault(name, (now, done))
        rate = (done - first) / (now - start) if now > start else 0.0
        words: dict[str, Any] = {"unit": unit, "rate": f"{rate:,.0f}/s" if rate else "", "note": note}
        if self._console.is_terminal:
            if name not in self._tasks:
                self._tasks[name] = self._live.add_task(name, total=total, **words)
            self._live.update(self._tasks[name], completed=done, total=total, **words)
        elif now - self._logged.setdefault(name, now) >= _LOG_SECONDS:
            self._logged[name] = now
            left = f", {(total - done) / rate:.0f} s left" if rate else ""
            self.say(f"{name}: {done} of {total} {unit}, {rate:,.0f}/s{left} {note}".rstrip())

    def remove(self, name: str) -> None:
        """Take a finished piece of work away."""
        if name in self._tasks:
            self._live.remove_task(self._tasks.pop(name))
