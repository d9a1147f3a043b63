"""Time series cut into windows, for forecasting or reconstruction and for what deviates from it.

Every series is cut by time into three parts: what is fitted on, what a threshold is chosen on, and what is judged. So
nothing that is fitted or chosen has seen later rows, and a threshold is used on the series that it was chosen on. (Cut
by series instead, it would have to hold for series of another kind: NAB's come from seven machines and services.)
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from kdcache.arrays import Array
from kdcache.config import SourceConfig
from kdcache.errors import SourceError, UsageError
from kdcache.sources.series_files import Series, read_anomalies, read_series
from kdcache.sources.source import LABEL, Ids, Rows, contents_digest, positions

__all__ = ["SeriesSource", "open_series"]

_CHUNK_ROWS = 1 << 14


class SeriesSource:
    """Windows of standardised series; ids number all windows of all series, in whichever split they are.

    `input` float32 [W]; `target` float32 [H], the values that follow, or for H = 0 float32 [W], the window itself;
    `series` int64 [], the file's number; `position` int64 [], the row of the last value of window and target; `part`
    int64 [] of that row, 0 to fit on, 1 to calibrate on, 2 to judge; `label` int64 [], 1 where that row lies in an
    anomaly window (left out where none are given).
    """

    def __init__(
        self,
        name: str,
        values: NDArray[np.float32],
        starts: Ids,
        ids: Ids,
        facts: dict[str, Ids],
        window: int,
        horizon: int,
    ) -> None:
        self.name = name
        self.classes: int | None = 2 if "label" in facts else None
        self.class_names: tuple[str, ...] = ("normal", "anomaly") if "label" in facts else ()
        self.arrays = {
            "input": Array("float32", (window,)),
            "target": Array("float32", (horizon or window,)),
            **{key: LABEL for key in facts},
        }
        self._values = values
        self._starts = starts
        self._ids = ids
        self._facts = facts
        self._ahead = window if horizon else 0  # where the target begins
        self._fingerprint: str | None = None

    def __len__(self) -> int:
        return len(self._ids)

    def ids(self) -> Ids:
        return self._ids.copy()

    def labels(self) -> Ids | None:
        """All labels in the order of `ids()`, None where no anomalies are given."""
        return self._facts.get("label")

    def read(self, ids: Ids) -> Rows:
        return self._rows(positions(self._ids, ids, self.name))

    def fingerprint(self) -> str:
        if self._fingerprint is None:
            runs = (
                self._rows(np.arange(first, min(first + _CHUNK_ROWS, len(self))))
                for first in range(0, len(self), _CHUNK_ROWS)
            )
            self._fingerprint = contents_digest(self.arrays, self._ids, runs)
        return self._fingerprint

    def _rows(self, places: NDArray[np.intp]) -> Rows:
        window, (target,) = self.arrays["input"].size, self.arrays["target"].shape
        first = self._starts[places][:, None]
        return {
            "input": self._values[first + np.arange(window)],
            "target": self._values[first + self._ahead + np.arange(target)],
            **{key: values[places] for key, values in self._facts.items()},
        }


def open_series(
    files: Sequence[Path], labels: Path | None, config: SourceConfig, split: str, *, name: str
) -> SeriesSource:
    """The windows of .csv files of `timestamp,value`, with the anomaly windows of a .json file in NAB's form.

    `split` "train" has the windows of the first part that touch no anomaly, so that what is fitted has seen only what
    is normal; "test" has all windows of the other two. Each series is standardised by the mean and the deviation of
    the rows of its first part `probation` that lie in no anomaly window (a deviation of 0 is taken as 1). A cut that
    falls into an anomaly window is moved to its end. Raises SourceError, UsageError.
    """
    if split not in ("train", "test"):
        raise UsageError(f"{name}: has no split {split!r}; a series has train, and test with the calibration part")
    if not config.parts[0] < config.parts[1]:
        raise UsageError(f"[source] parts = {list(config.parts)}: fitting ends before calibration does")
    span = config.window + config.horizon
    series = [read_series(path) for path in files]
    anomalies = None if labels is None else read_anomalies(labels, files, series)
    values, columns, offset = [], [], 0
    for number, (path, one) in enumerate(zip(files, series, strict=True)):
        count = len(one.values)
        if count < span:
            raise SourceError(
                f"{path}: has {count} rows, fewer than the {span} of a window ({config.window}) and its horizon "
                f"({config.horizon})"
            )
        odd = np.zeros(count, bool) if anomalies is None else anomalies[number]
        values.append(_standardised(path, one, odd, config.probation))
        part = np.zeros(count, np.int64)
        for share in config.parts:
            part[_cut(odd, share) :] += 1
        starts = np.arange(0, count - span + 1, config.stride)
        last = starts + span - 1
        before = np.concatenate([[0], np.cumsum(odd)])
        columns.append(
            {
                "start": starts + offset,
                "series": np.full(len(starts), number),
                "position": last,
                "part": part[last],
                "label": odd[last].astype(np.int64),
                "touched": before[last + 1] - before[starts],
            }
        )
        offset += count
    all_of = {key: np.concatenate([each[key] for each in columns]) for key in columns[0]}
    if split == "train":
        ids = np.flatnonzero((all_of["part"] == 0) & (all_of["touched"] == 0))
    else:
        ids = np.flatnonzero(all_of["part"] > 0)
    if not len(ids):
        raise SourceError(f"{name}: split {split!r} has no window; see `window`, `stride` and `parts`")
    kept = ["series", "position", "part", *([] if anomalies is None else ["label"])]
    facts = {key: all_of[key][ids] for key in kept}
    return SeriesSource(
        name, np.concatenate(values), all_of["start"][ids], ids.astype(np.int64), facts, config.window, config.horizon
    )


def _standardised(path: Path, series: Series, odd: NDArray[np.bool_], probation: float) -> NDArray[np.float32]:
    first = series.values[: max(1, int(probation * len(odd)))]
    first = first[~odd[: len(first)]]
    if not len(first):
        raise SourceError(
            f"{path}: the first {probation:.0%} of its rows lie in an anomaly window, so nothing says what is normal; "
            "raise `probation`"
        )
    with np.errstate(over="ignore", invalid="ignore"):
        scaled: NDArray[np.float32] = ((series.values - first.mean()) / (first.std() or 1.0)).astype(np.float32)
    if not np.isfinite(scaled).all():
        raise SourceError(f"{path}: row {int((~np.isfinite(scaled)).argmax())} does not fit float32 once standardised")
    return scaled


def _cut(odd: NDArray[np.bool_], share: float) -> int:
    """The row at a share of the series, or the first one after it that no anomaly window reaches across."""
    row = int(share * len(odd))
    while 0 < row < len(odd) and odd[row - 1] and odd[row]:
        row += 1
    return row
