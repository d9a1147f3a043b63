"""What a fit tells whoever watches it; the library itself prints nothing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["Progress"]


class Progress:
    """Silent. A command line overrides what it wants to show; only the main process calls it."""

    def started(self, place: str, step: int, steps: int, rows: int) -> None:
        """The loop begins after `step` of `steps` steps, over `rows` training rows; `place` is the run's folder."""

    def stepped(self, step: int) -> None:
        """A step is done. Called after every step: keep it short."""

    def measured(self, step: int, epoch: int, split: str, metrics: Mapping[str, Any]) -> None:
        """A row of metrics.jsonl was written; `split` is train, val or eval."""

    def said(self, line: str) -> None:
        """Something that a person should know, such as a damaged checkpoint that was passed over."""

    def finished(self, step: int, seconds: float) -> None:
        """The loop is done."""
