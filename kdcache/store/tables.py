"""Small arrays that a codec was fitted with (a basis, bit widths): safetensors files named by their own SHA-256."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
from numpy.typing import NDArray

from kdcache.errors import StoreDamaged
from kdcache.files import disk_errors, read_bytes
from kdcache.fingerprint import sha256
from kdcache.store.guard import safe
from kdcache.store.plan import Plan

__all__ = ["Table", "pack_table", "read_table", "table_path"]

Table = dict[str, NDArray[Any]]
_LIMIT = 1 << 30


def table_path(store: Path, field: str, digest: str) -> Path:
    """Where the tables of a field lie."""
    return store / "tables" / f"{field}-{digest[:16]}.safetensors"


def pack_table(arrays: Mapping[str, NDArray[Any]]) -> bytes:
    """The file's bytes; equal arrays give equal bytes."""
    return bytes(safetensors.numpy.save({name: np.ascontiguousarray(arrays[name]) for name in sorted(arrays)}))


def read_table(store: Path, plan: Plan, field: str) -> Table:
    """A field's arrays by name, checked by SHA-256; {} where its codec needs none."""
    if (digest := plan.tables.get(field)) is None:
        return {}
    path = table_path(store, field, digest)
    with disk_errors(path, "read"):
        try:
            data = read_bytes(path, _LIMIT)
        except FileNotFoundError:
            raise StoreDamaged(f"{path}: the tables of {field} are missing; restore them from a good copy") from None
    if (found := sha256([data])) != digest:
        raise StoreDamaged(f"{path}: expected SHA-256 {digest}, found {found}; restore it from a good copy")
    try:
        return dict(safetensors.numpy.load(data))
    except Exception as error:  # dtypes that numpy lacks raise KeyError
        raise StoreDamaged(f"{path}: is no safetensors file ({safe(error)}); restore it from a good copy") from error
