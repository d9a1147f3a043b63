"""The files of time series: tables of `timestamp,value`, and anomaly windows as NAB's JSON has them."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from kdcache.errors import SourceError
from kdcache.sources.delimited import read_table
from kdcache.sources.packed import open_packed

__all__ = ["Series", "read_anomalies", "read_series"]

Times = NDArray[np.datetime64]
_HEADER = ["timestamp", "value"]
_MOST_BYTES = 1 << 26
# When summer time ends a local clock goes back by an hour; NAB's machine_temperature does.
_BACK = np.timedelta64(3600, "s")


@dataclass(frozen=True)
class Series:
    """Times datetime64[us] [N] and values float64 [N], in the order of the file."""

    times: Times
    values: NDArray[np.float64]


def read_series(path: Path) -> Series:
    """A .csv with the header `timestamp,value`. SourceError with the line's number.

    Times may repeat, and go back by no more than an hour, as clocks do at the end of summer time.
    """
    rows = read_table(path)
    line, header = next(rows, (1, []))
    if header != _HEADER:
        raise SourceError(f"{path}: line {line}: its header is {header[:4]}; expected {','.join(_HEADER)}")
    times, values, lines = [], [], []
    for line, cells in rows:
        if len(cells) != len(_HEADER):
            raise SourceError(f"{path}: line {line}: has {len(cells)} cells; expected a timestamp and a value")
        times.append(_time(cells[0], f"{path}: line {line}"))
        values.append(_number(cells[1], f"{path}: line {line}"))
        lines.append(line)
    if not values:
        raise SourceError(f"{path}: holds no rows under its header")
    series = Series(np.array(times, "datetime64[us]"), np.array(values))
    steps = np.diff(series.times)
    if (back := steps < -_BACK).any():
        row = int(back.argmax())
        raise SourceError(
            f"{path}: line {lines[row + 1]}: {times[row + 1]} comes after {times[row]}; a series is in the order of "
            "its times (an hour back, as at the end of summer time, is taken)"
        )
    return series


def read_anomalies(path: Path, files: Sequence[Path], series: Sequence[Series]) -> list[NDArray[np.bool_]]:
    """For each series bool [N], True for the rows inside an anomaly window, both ends included.

    The file is a JSON object: a series' name, as the end of its file's path ("realKnownCause/nyc_taxi.csv"), to a
    list of [first time, last time]; [] says that it has none. SourceError where a series is not in it.
    """
    with open_packed(path) as (file, most, _):
        content = file.read(min(most, _MOST_BYTES) + 1)
    try:
        table = json.loads(content) if len(content) <= _MOST_BYTES else None
    except (ValueError, RecursionError) as error:
        raise SourceError(f"{path}: is not JSON ({error})") from error
    if not isinstance(table, dict):
        raise SourceError(
            f"{path}: expected a JSON object of at most {_MOST_BYTES} bytes, from a series to its windows"
        )
    found = []
    for place, one in zip(files, series, strict=True):
        parts = place.with_name(place.name.removesuffix(".gz")).parts
        names = [name for name in table if parts[-len(Path(name).parts) :] == Path(name).parts]
        if len(names) != 1:
            raise SourceError(
                f"{path}: names {len(names)} series that {place} could be; give each its windows, [] where it has none"
            )
        inside = np.zeros(len(one.times), bool)
        for first, last in _windows(table[names[0]], f"{path}: {names[0]}"):
            inside |= (one.times >= first) & (one.times <= last)
        found.append(inside)
    return found


def _windows(given: object, place: str) -> list[tuple[np.datetime64, np.datetime64]]:
    windows: list[tuple[np.datetime64, np.datetime64]] = []
    for pair in given if isinstance(given, list) else [given]:
        if not (isinstance(pair, list) and len(pair) == 2 and all(isinstance(end, str) for end in pair)):
            raise SourceError(f"{place}: {str(pair)[:60]} is no window; expected [first time, last time]")
        first, last = (np.datetime64(_time(end, place), "us") for end in pair)
        if last < first:
            raise SourceError(f"{place}: the window from {pair[0]} to {pair[1]} ends before it begins")
        windows.append((first, last))
    return windows


def _time(text: str, place: str) -> datetime:
    try:
        time = datetime.fromisoformat(text.strip())
    except ValueError:
        raise SourceError(f"{place}: {text[:40]!r} is no time; expected, for instance, 2014-07-01 00:30:00") from None
    if time.tzinfo is not None:
        raise SourceError(f"{place}: {text[:40]!r} has a time zone; write all times in one, without naming it")
    return time


def _number(text: str, place: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise SourceError(f"{place}: its value is {text[:40]!r}; expected a finite number")
    return value
