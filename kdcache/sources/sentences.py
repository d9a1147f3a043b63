"""Sentences and their labels out of tables."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from kdcache.errors import SourceError
from kdcache.sources.delimited import read_table

__all__ = ["Sentences", "read_sentences"]

_WHOLE = re.compile(r"-?[0-9]{1,10}")


@dataclass(frozen=True)
class Sentences:
    """The sentences of one file and, unless they are unlabelled, their labels int64 [N]."""

    texts: list[str]
    labels: NDArray[np.int64] | None


def read_sentences(
    path: Path, text_key: str | None = None, label_key: str | None = None, classes: int | None = None
) -> Sentences:
    """The rows of a .tsv or .csv: `sentence` and `label`, or under a header the columns of these names.

    With `text_key` the first row is a header, and `label_key` may be absent from it: then the sentences are unlabelled.
    Raises SourceError with the line's number.
    """
    rows = read_table(path)
    text_at, label_at, width = 0, 1, 2
    if text_key is not None:
        _, header = next(rows, (1, list[str]()))
        width = len(header)
        if text_key not in header:
            raise SourceError(f"{path}: its header has no column {text_key!r}, it has {header[:8]}; see `text_key`")
        text_at = header.index(text_key)
        label_at = header.index(label_key) if label_key in header else -1
    texts, labels, lines = [], [], []
    for line, cells in rows:
        if len(cells) != width:
            raise SourceError(
                f"{path}: line {line}: has {len(cells)} cells where {width} are expected"
                f"{' (sentence, label)' if text_key is None else ''}; a tab or comma inside a text cuts it in two"
            )
        if not cells[text_at].strip():
            raise SourceError(f"{path}: line {line}: its sentence is empty; remove the line")
        texts.append(cells[text_at])
        if label_at >= 0:
            if not _WHOLE.fullmatch(cells[label_at].strip()):
                raise SourceError(
                    f"{path}: line {line}: its label is {cells[label_at][:40]!r}, which is no whole number; "
                    "number the classes from 0"
                )
            labels.append(int(cells[label_at]))
            lines.append(line)
    if not texts:
        raise SourceError(f"{path}: holds no rows under its header")
    if label_at < 0:
        return Sentences(texts, None)
    found = np.array(labels, np.int64)
    most = classes or 1 << 31
    if (bad := (found < -1) | (found >= most)).any():
        row = int(bad.argmax())
        raise SourceError(
            f"{path}: line {lines[row]}: its label is {found[row]}; allowed are 0 to {most - 1}, or -1 for unlabelled"
        )
    return Sentences(texts, found)
