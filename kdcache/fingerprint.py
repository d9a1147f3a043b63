"""Canonical JSON and SHA-256: how a plan, a source or a recipe becomes one name that two machines agree on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from kdcache.errors import SourceError

__all__ = ["canonical", "digest_of", "file_digest", "sha256"]


def canonical(value: Any) -> bytes:
    """Canonical bytes of a JSON value: UTF-8, keys sorted, no spaces, no NaN, one newline at the end."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return text.encode() + b"\n"


def sha256(parts: Iterable[bytes | memoryview]) -> str:
    """Hexadecimal SHA-256 of the parts, one after the other."""
    state = hashlib.sha256()
    for part in parts:
        state.update(part)
    return state.hexdigest()


def digest_of(value: Any) -> str:
    """Hexadecimal SHA-256 of the canonical bytes of a JSON value."""
    return sha256([canonical(value)])


def file_digest(path: Path) -> str:
    """Hexadecimal SHA-256 of a source's file; raises SourceError where it cannot be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise SourceError(f"{path}: cannot be read ({error.strerror}); check the path in the recipe") from error
