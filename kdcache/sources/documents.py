"""Documents out of files: plain text cut by file, line, paragraph or separator, and the rows of a .jsonl."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

from kdcache.errors import SourceError
from kdcache.sources.packed import MEMORY_LIMIT, open_packed

__all__ = ["Document", "Part", "read_documents"]

# One or more blank lines, which may hold spaces.
_BLANK = re.compile(r"\n(?:[ \t\r]*\n)+")
_BOUNDARY = b"\n\n"


@dataclass(frozen=True)
class Document:
    """The text of a document. `prompt` comes before it and is read, but never scored."""

    text: str
    prompt: str | None = None


@dataclass(frozen=True)
class Part:
    """A file, from a share of its bytes to another; a cut is moved to the end of the next blank line."""

    path: Path
    first: float = 0.0
    last: float = 1.0


def read_documents(part: Part, document: str) -> list[Document]:
    """The documents of a file that are not blank, in order; a file may be gzipped.

    `document` is "file", "line", "paragraph" (cut at blank lines) or the text that stands between two documents. Lines
    of a .jsonl are objects with a key `text`, or with `prompt` and `response`. Raises SourceError.
    """
    text = _read(part)
    if _suffix(part.path) == ".jsonl":
        return [
            _from_json(line, f"{part.path}: line {n}") for n, line in enumerate(text.split("\n"), 1) if line.strip()
        ]
    match document:
        case "file":
            pieces = [text]
        case "line":
            pieces = text.splitlines()
        case "paragraph":
            pieces = _BLANK.split(text)
        case _:
            pieces = text.split(document)
    return [Document(piece) for piece in pieces if piece.strip()]


def _suffix(path: Path) -> str:
    return Path(path.name.removesuffix(".gz")).suffix


def _read(part: Part) -> str:
    with open_packed(part.path) as (file, most, _):
        content = file.read(min(most, MEMORY_LIMIT) + 1)
    if len(content) > MEMORY_LIMIT:
        raise SourceError(f"{part.path}: more than the {MEMORY_LIMIT} bytes of text that are read; cut it into files")
    if not content.strip():
        raise SourceError(f"{part.path}: holds no text ({len(content)} bytes); leave it out of `files`")
    content = content[_cut(content, part.first) : _cut(content, part.last)]
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise SourceError(
            f"{part.path}: byte {error.start} ({content[error.start]:#04x}) is not UTF-8; convert the file to UTF-8"
        ) from error


def _cut(content: bytes, share: float) -> int:
    place = int(share * len(content))
    if place in (0, len(content)):
        return place
    found = content.find(_BOUNDARY, place)
    return len(content) if found < 0 else found + len(_BOUNDARY)


def _from_json(line: str, place: str) -> Document:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise SourceError(f"{place}: is not JSON ({error})") from error
    match row:
        case {"prompt": str(prompt), "response": str(response)}:
            return Document(response, prompt)
        case {"text": str(text)}:
            return Document(text)
    keys = sorted(row)[:8] if isinstance(row, dict) else type(row).__name__
    raise SourceError(f"{place}: needs `text`, or `prompt` and `response`, as strings; it has {keys}")
