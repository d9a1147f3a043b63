"""`Array`: the dtype and the shape per sample of one field or column."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

__all__ = ["DTYPES", "Array"]

# numpy has no bfloat16, so its bytes are carried as uint16 and only torch gives them their meaning.
DTYPES: dict[str, np.dtype[Any]] = {
    **{
        name: np.dtype(name).newbyteorder("<")
        for name in ("uint8", "int8", "uint16", "int16", "uint32", "int32", "int64", "float16", "float32", "float64")
    },
    "bfloat16": np.dtype("<u2"),
}


@dataclass(frozen=True)
class Array:
    """A dtype name (a key of `DTYPES`) and the shape of one sample, `()` for a scalar."""

    dtype: str
    shape: tuple[int, ...] = ()

    @property
    def numpy(self) -> np.dtype[Any]:
        """The little-endian numpy dtype that carries it (uint16 for bfloat16)."""
        return DTYPES[self.dtype]

    @property
    def size(self) -> int:
        """Values per sample."""
        return math.prod(self.shape)

    @property
    def width(self) -> int:
        """Bytes per sample."""
        return self.size * self.numpy.itemsize

    def __str__(self) -> str:
        return f"{self.dtype}[{', '.join(map(str, self.shape))}]"
