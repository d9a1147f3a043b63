"""`metrics.jsonl` and TensorBoard: one row for each measurement, cut back to the checkpoint on resume."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from kdcache.files import disk_errors, replace_bytes
from kdcache.student.progress import Progress

__all__ = ["Metrics", "read_metrics"]


class Metrics:
    """Appends rows {"step", "epoch", "split", "loss", "accuracy"?, "lr"?, "terms"?} while a fit runs.

    Rows past `after` (the checkpoint's step) were written by a run that got further and was killed: they are cut off.
    So are evaluations of the finished model, which come after the last checkpoint and are made again.
    """

    def __init__(self, out: Path, after: int, progress: Progress) -> None:
        from tensorboardX import SummaryWriter

        self._progress = progress
        self._path = out / "metrics.jsonl"
        kept = [row for row in read_metrics(out) if row["step"] <= after and row.get("split") != "eval"]
        replace_bytes(self._path, "".join(_line(row) for row in kept).encode())
        with disk_errors(self._path):
            self._file = self._path.open("a", encoding="utf-8")
            self._board = SummaryWriter(str(out / "tensorboard"), purge_step=after + 1 if after else None)

    def write(self, step: int, epoch: int, split: str, values: Mapping[str, Any]) -> None:
        """Add a row; it can be read by others at once."""
        with disk_errors(self._path):
            self._file.write(_line({"step": step, "epoch": epoch, "split": split, **values}))
            self._file.flush()
            for name, value in values.items():
                for label, number in value.items() if isinstance(value, dict) else [(name, value)]:
                    self._board.add_scalar(f"{split}/{label}", number, step)
        self._progress.measured(step, epoch, split, values)

    def __enter__(self) -> Metrics:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
        self._board.close()


def read_metrics(out: Path) -> list[dict[str, Any]]:
    """The rows of a run's `metrics.jsonl`, [] if there is none; a last line torn by a kill is left out."""
    try:
        text = (out / "metrics.jsonl").read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return []
    rows = []
    for line in text.splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict) and isinstance(row.get("step"), int):
            rows.append(row)
    return rows


def _line(row: Mapping[str, Any]) -> str:
    return json.dumps(row, separators=(",", ":")) + "\n"
