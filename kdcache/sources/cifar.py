"""CIFAR-10 and CIFAR-100 in their binary record format: label bytes, then three 32×32 planes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from kdcache.errors import SourceError, UsageError
from kdcache.sources.packed import fill, open_packed
from kdcache.sources.source import ArraySource, checked_labels

__all__ = ["open_cifar"]

_PIXELS = 3 * 32 * 32
_NAMES = {1: "CIFAR-10", 2: "CIFAR-100"}
# The label bytes of a record and how many values each may take.
_RANGES = {1: (("label", 10),), 2: (("coarse", 20), ("fine", 100))}
# Six times the largest official file: room for other sets in this format, none for a bomb.
_LIMIT = 1 << 30

Records = npt.NDArray[np.uint8]


def open_cifar(
    files: Sequence[Path],
    label: Literal["fine", "coarse"] = "fine",
    *,
    name: str,
    label_bytes: int | None = None,
    class_names: tuple[str, ...] = (),
    labels_also: Sequence[Literal["fine", "coarse"]] = (),
    facts: Literal["coarse"] | None = None,
) -> ArraySource:
    """Images uint8 [3, 32, 32] of the records of all files, one file after the other.

    `label_bytes` (1: CIFAR-10, 2: CIFAR-100) is told from the files where it is not given. `labels_also` adds the
    other label as `label.coarse` or `label.fine` int64 [], `facts` the coarse one as `fact` float32 [20], 1 at the
    image's group and 0 elsewhere.
    """
    if label in labels_also or len(set(labels_also)) < len(labels_also):
        raise UsageError(f"[source] labels_also = {list(labels_also)}: give each label once, and {label!r} is `label`")
    if facts == label:
        raise UsageError(f'[source] facts = "{facts}" beside label = "{label}" would tell the answer; leave one out')
    contents = [_contents(path) for path in files]
    kinds = [label_bytes or _label_bytes(path, content) for path, content in zip(files, contents, strict=True)]
    first = kinds[0]
    for path, kind in zip(files, kinds, strict=True):
        if kind != first:
            raise SourceError(
                f"{path} holds {_NAMES[kind]} records and {files[0]} holds {_NAMES[first]} records; "
                "one source takes one kind"
            )
    if first == 1 and (label == "coarse" or labels_also or facts):
        key = 'label = "coarse"' if label == "coarse" else "`labels_also`" if labels_also else "`facts`"
        raise SourceError(
            f"{files[0]}: holds CIFAR-10 records, which have one label; {key} needs "
            f"the {_PIXELS + 2}-byte records of CIFAR-100"
        )
    column = 1 if first == 2 and label == "fine" else 0
    records = [_records(path, content, first) for path, content in zip(files, contents, strict=True)]
    del contents
    labels = np.concatenate([record[:, :first] for record in records]).astype(np.int64)
    inputs = np.concatenate([record[:, first:] for record in records]).reshape(-1, 3, 32, 32)
    more: dict[str, npt.NDArray[Any]] = {f"label.{each}": labels[:, int(each == "fine")] for each in labels_also}
    if facts:
        more["fact"] = np.eye(_RANGES[2][0][1], dtype=np.float32)[labels[:, 0]]
    return ArraySource(
        name,
        inputs,
        np.ascontiguousarray(labels[:, column]),
        classes=_RANGES[first][column][1],
        class_names=class_names,
        more=more,
        label_classes={f"label.{each}": _RANGES[2][int(each == "fine")][1] for each in labels_also},
    )


def _contents(path: Path) -> Records:
    with open_packed(path) as (file, most, _):
        # One byte more than allowed, to see whether there is one.
        content = fill(file, min(most, _LIMIT) + 1, str(path))
    if len(content) > _LIMIT:
        raise SourceError(
            f"{path}: more than {_LIMIT} bytes; CIFAR files hold 154 MB at most: "
            'split it, or save it as .npy and open it with kind = "arrays"'
        )
    if not len(content):
        raise SourceError(f"{path}: empty; expected CIFAR records of {_PIXELS + 1} or {_PIXELS + 2} bytes")
    return content


def _label_bytes(path: Path, content: Records) -> int:
    """1 or 2, by the size; by the labels where a size fits both."""
    fitting = [kind for kind in _NAMES if not len(content) % (_PIXELS + kind)]
    if len(fitting) > 1:
        fitting = [kind for kind in fitting if _plausible(content, kind)] or fitting
    if not fitting:
        raise SourceError(
            f"{path}: {len(content)} bytes are no whole number of records of {_PIXELS + 1} (CIFAR-10) "
            f"or {_PIXELS + 2} bytes (CIFAR-100): it is cut short or of another format"
        )
    if len(fitting) > 1:
        raise SourceError(
            f"{path}: {len(content)} bytes can be read as CIFAR-10 and as CIFAR-100 records, "
            "and the labels do not tell which: split the file into two of unequal size"
        )
    return fitting[0]


def _plausible(content: Records, kind: int) -> bool:
    records = content.reshape(-1, _PIXELS + kind)
    return all(int(records[:, column].max()) < limit for column, (_, limit) in enumerate(_RANGES[kind]))


def _records(path: Path, content: Records, kind: int) -> Records:
    width = _PIXELS + kind
    if len(content) % width:
        raise SourceError(
            f"{path}: {len(content)} bytes are no whole number of {_NAMES[kind]} records "
            f"of {width} bytes: it is cut short or of another format"
        )
    records = content.reshape(-1, width)
    for column, (what, limit) in enumerate(_RANGES[kind]):
        checked_labels(records[:, column], limit, f"{path} ({what})")
    return records
