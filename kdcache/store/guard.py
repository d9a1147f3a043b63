"""Bounds on what a store from a stranger may say, checked before anything of it is used."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kdcache.arrays import DTYPES, Array
from kdcache.errors import StoreDamaged, TrustError
from kdcache.files import read_bytes
from kdcache.fingerprint import canonical

__all__ = [
    "HEX32",
    "HEX64",
    "check_array",
    "check_int",
    "check_name",
    "keys",
    "parse_canonical",
    "read_canonical",
    "safe",
]

MAX_DEPTH = 16
MAX_ROWS = 2**40
MAX_WIDTH = 2**31
MAX_AXES = 8
HEX32 = re.compile(r"[0-9a-f]{32}")
HEX64 = re.compile(r"[0-9a-f]{64}")
# An unfinished string runs to the end, and nothing is tried twice: time is linear in the bytes, whatever they are.
_BRACKET_OR_STRING = re.compile(rb'[\[{\]}]|"[^"\\]*+(?:\\.[^"\\]*+)*+(?:"|\Z)?', re.DOTALL)
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


def read_canonical(path: Path, limit: int) -> Any:
    """The JSON value in a file of ours; refused unless its bytes are exactly the canonical ones."""
    return parse_canonical(read_bytes(path, limit), str(path))


def parse_canonical(data: bytes, place: str) -> Any:
    """The JSON value in `data`; duplicate keys, NaN, deep nesting and non-canonical bytes are refused."""
    depth = 0
    for token in _BRACKET_OR_STRING.finditer(data):
        if (found := token[0]) in b"[{":
            depth += 1
        elif found in b"]}":
            depth -= 1
        if depth > MAX_DEPTH:
            raise TrustError(f"{place}: JSON nested more than {MAX_DEPTH} deep is not read")
    try:
        value = json.loads(data, object_pairs_hook=_unique, parse_constant=_refuse)
        same = canonical(value) == data
    except (ValueError, RecursionError) as error:
        raise StoreDamaged(
            f"{place}: not the JSON that kdcache writes: {safe(error)}; restore it from a good copy"
        ) from None
    if not same:
        raise StoreDamaged(
            f"{place}: bytes are not in canonical form, so it was changed after it was written; "
            "restore it from a good copy"
        )
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) != len(pairs):
        raise ValueError("a key stands twice in one table")
    return table


def _refuse(word: str) -> Any:
    raise ValueError(f"{word} is not a number that a store may hold")


def keys(
    value: Any, required: Mapping[str, type | tuple[type, ...]], place: str, also: tuple[str, ...] = ()
) -> dict[str, Any]:
    """`value` as a table that has exactly the required keys of the required types (and maybe those in `also`)."""
    if not isinstance(value, dict):
        raise StoreDamaged(f"{place}: expected a table, found {type(value).__name__}")
    for key, kind in required.items():
        if key not in value:
            raise StoreDamaged(f"{place}: {key!r} is missing")
        if not isinstance(value[key], kind) or (isinstance(value[key], bool) and kind is int):
            raise StoreDamaged(f"{place}: {key!r} is {type(value[key]).__name__}, which it may not be")
    if strange := value.keys() - required.keys() - set(also):
        raise StoreDamaged(
            f"{place}: unknown key {safe(sorted(strange)[0])!r}; this store was written by a newer kdcache"
        )
    return value


def check_int(value: Any, low: int, high: int, place: str) -> int:
    """An integer within bounds."""
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise StoreDamaged(f"{place}: {safe(value)} is not an integer from {low} to {high}")
    return value


def check_name(name: Any, place: str) -> str:
    """The name of a field or column: letters, digits, `.`, `_`, `-`."""
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise TrustError(f"{place}: {safe(name)!r} is not a name that a store may use")
    return name


def check_array(value: Any, place: str) -> Array:
    """A dtype and shape whose width is bounded."""
    table = keys(value, {"dtype": str, "shape": list}, place)
    if table["dtype"] not in DTYPES:
        raise StoreDamaged(f"{place}: dtype {safe(table['dtype'])!r} is none of {sorted(DTYPES)}")
    if len(table["shape"]) > MAX_AXES:
        raise TrustError(f"{place}: {len(table['shape'])} axes, at most {MAX_AXES} are read")
    shape = tuple(check_int(side, 1, MAX_WIDTH, place) for side in table["shape"])
    if math.prod(shape) * DTYPES[table["dtype"]].itemsize > MAX_WIDTH:
        raise TrustError(f"{place}: one sample would take more than {MAX_WIDTH} bytes")
    return Array(table["dtype"], shape)


def safe(value: Any, limit: int = 200) -> str:
    """A string from a store on its way to a terminal or log: printable characters only, bounded in length."""
    text = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in str(value)[: limit + 1])
    return text if len(text) <= limit else text[:limit] + "…"
