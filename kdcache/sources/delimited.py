"""Tables of text: the rows of a .tsv or .csv file with the number of the line on which each ends."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from pathlib import Path

from kdcache.errors import SourceError
from kdcache.sources.packed import open_packed

__all__ = ["is_delimited", "read_table"]

_LIMIT = 1 << 31  # bytes: as Python strings they take several times as much
_SUFFIXES = (".tsv", ".csv")


def is_delimited(path: Path) -> bool:
    """Whether a file's name says that it is a table, gzipped or not."""
    return path.name.removesuffix(".gz").endswith(_SUFFIXES)


def read_table(path: Path) -> Iterator[tuple[int, list[str]]]:
    """(line number from 1, cells) of every row; the file is UTF-8 and may be gzipped.

    A .csv is cut at commas and may quote its cells as RFC 4180 says. All else is cut at tabs, and a quotation mark is
    a character as any other. Raises SourceError for a file that is empty, too large, not UTF-8, or wrongly quoted.
    """
    text = _text(path)
    if path.name.removesuffix(".gz").endswith(".csv"):
        return _quoted(path, text)
    lines = text.removesuffix("\n").split("\n")
    return ((number, line.removesuffix("\r").split("\t")) for number, line in enumerate(lines, 1))


def _quoted(path: Path, text: str) -> Iterator[tuple[int, list[str]]]:
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        for row in reader:
            if row:  # a blank line is none
                yield reader.line_num, row
    except csv.Error as error:
        if "field limit" in str(error):
            most = csv.field_size_limit()
            raise SourceError(
                f"{path}: line {reader.line_num}: a cell of more than {most} characters; cut it"
            ) from error
        raise SourceError(
            f"{path}: line {reader.line_num}: wrongly quoted ({error}); a quotation mark inside a quoted cell is "
            "written twice, and every quoted cell is closed"
        ) from error


def _text(path: Path) -> str:
    with open_packed(path) as (file, most, _):
        content = file.read(min(most, _LIMIT) + 1)
    if len(content) > _LIMIT:
        raise SourceError(f"{path}: more than the {_LIMIT} bytes that are read of a table; cut it into files")
    if not content.strip():
        raise SourceError(f"{path}: holds no rows ({len(content)} bytes); leave it out of `files`")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise SourceError(
            f"{path}: line {line}: byte {error.start} ({content[error.start]:#04x}) is not UTF-8; convert the file"
        ) from error
