"""The two digests of a store and their two jobs.

xxh3_128 for each block and column, over the decoded bytes, taken before encoding: checked on every first read.
SHA-256 for each shard: its identity, in its name, commit record and the manifest; checked by `verify` and on copying.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from kdcache.errors import StoreDamaged

__all__ = ["block_digest", "check_block", "unit_digests"]


def block_digest(data: NDArray[Any]) -> str:
    """xxh3_128 of contiguous bytes, as 32 hexadecimal digits."""
    return str(xxhash.xxh3_128(data.data).hexdigest())


def unit_digests(columns: Mapping[str, NDArray[Any]], block_rows: int) -> dict[str, list[str]]:
    """The digest of every block of every column of one unit."""
    return {
        name: [
            block_digest(array[start : start + block_rows].reshape(-1).view(np.uint8))
            for start in range(0, len(array), block_rows)
        ]
        for name, array in columns.items()
    }


def check_block(data: NDArray[np.uint8], expected: str, shard: Path, block: int, column: str) -> None:
    """Raise StoreDamaged unless a block's bytes have the digest that they were written with."""
    found = block_digest(data)
    if found != expected:
        raise StoreDamaged(
            f"{shard}: block {block}, column {column}: expected xxh3_128 {expected}, found {found}; "
            "restore the shard from a good copy, or delete it, its record in units/ and manifest.json, and dump again"
        )
