"""What every codec module offers, and the checks that they share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from kdcache.arrays import Array
from kdcache.codecs.targets import Targets
from kdcache.errors import StoreDamaged, UsageError
from kdcache.near_misses import near_misses

__all__ = ["Codec", "check_columns", "known_keys", "torch_dtype"]


class Codec(Protocol):
    """A module of pure functions between one field's tensor [B, *array.shape] and fixed-width columns [B, *shape]."""

    NEEDS_PILOT: bool

    def configure(self, configuration: Mapping[str, Any], array: Array) -> dict[str, Any]:
        """The configuration checked against the field and completed, as plain JSON; idempotent. UsageError."""

    def columns(self, array: Array, configuration: Mapping[str, Any]) -> dict[str, Array]:
        """What it stores: column suffix ("" is the field's own name) to dtype and shape per row."""

    def fit(self, pilot: Tensor, configuration: Mapping[str, Any]) -> dict[str, np.ndarray[Any, Any]]:
        """Tables from a pilot float32 [P, C], the first rows of the plan; {} unless NEEDS_PILOT. Deterministic."""

    def encode(
        self,
        values: Tensor,
        configuration: Mapping[str, Any],
        tables: Mapping[str, Tensor],
        keys: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Columns of finite `values` [B, *shape], on their device; each row depends on nothing but itself and its key.

        Codecs for logits work on the last axis, with any axes before it: the caller may hand over [n, C] of the
        positions of a sequence, chunk by chunk. `keys` int64, of the shape of `values` without its last axis, are what
        a codec that draws at random keys its draws with; the same for a row whenever it is encoded.
        """

    def check(
        self, stored: Mapping[str, Tensor], array: Array, configuration: Mapping[str, Any], tables: Mapping[str, Tensor]
    ) -> None:
        """StoreDamaged if columns or tables of a store are not what they say.

        Reads values, so it is for tensors in host memory. `decode` calls it for those; whoever sends columns to an
        accelerator and decodes there calls this first.
        """

    def decode(
        self, stored: Mapping[str, Tensor], array: Array, configuration: Mapping[str, Any], tables: Mapping[str, Tensor]
    ) -> Targets:
        """Targets on the columns' device; a dense tensor has the dtype and shape of `array`."""


def torch_dtype(name: str) -> torch.dtype:
    """The torch dtype of a dtype name of `kdcache.arrays`."""
    dtype = getattr(torch, name)
    assert isinstance(dtype, torch.dtype)
    return dtype


def known_keys(codec: str, configuration: Mapping[str, Any], keys: tuple[str, ...]) -> None:
    """UsageError for a key that the codec does not take."""
    for key in configuration:
        if key not in keys:
            raise UsageError(f"codec {codec!r} does not take {key!r}; {near_misses(key, keys)}")


def check_columns(stored: Mapping[str, Tensor], declared: Mapping[str, Array]) -> None:
    """StoreDamaged unless the columns have the declared names, dtypes (bfloat16 may come as uint16) and shapes."""
    if set(stored) != set(declared):
        raise StoreDamaged(f"the field's columns are {sorted(stored)}, and its codec declares {sorted(declared)}")
    for suffix, array in declared.items():
        column = stored[suffix]
        dtypes = (torch_dtype(array.dtype), *((torch.uint16,) if array.dtype == "bfloat16" else ()))
        if column.dtype not in dtypes or tuple(column.shape[1:]) != array.shape or not column.ndim:
            raise StoreDamaged(
                f"column {suffix!r} is {column.dtype} {list(column.shape)}, and its codec declares {array} a row"
            )
