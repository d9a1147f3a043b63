"""`Array`: the dtype and the shape per sample of one field or column."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from kdcache.errors import UsageError

__all__ = ["DTYPES", "Array", "named_arrays", "outputs_for", "sequence_positions"]

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


def outputs_for(arrays: Mapping[str, Array], classes: int | None) -> int | None:
    """How many outputs a network for such samples has: the values of a `target` that it is to predict, else the
    classes; None where neither is known."""
    return arrays["target"].size if "target" in arrays else classes


def sequence_positions(arrays: Mapping[str, Array]) -> int | None:
    """P, the targets of a row that is a sequence of tokens, which has a label at each; None for other samples."""
    row, label = arrays["input"], arrays.get("label")
    tokens = len(row.shape) == 1 and row.dtype.startswith("int")
    return label.shape[0] if tokens and label is not None and len(label.shape) == 1 else None


def named_arrays(names: Sequence[str], arrays: Mapping[str, Array], place: str) -> list[Array]:
    """What a network is given of a row; UsageError, beginning with `place`, for a name that is not there."""
    for name in names:
        if name not in arrays:
            raise UsageError(f"{place}: inputs = {list(names)}: there is no {name!r}, only {', '.join(sorted(arrays))}")
    return [arrays[name] for name in names]
