"""Keyed uniform draws, made on the device of the rows that they are for.

A draw is a pure function of a seed, the row's key and a number, so a row gets the same draws whenever, wherever and in
whatever batch it is encoded. With `hash(key, i) = mix(key + (i + 1) * 0x9E3779B97F4A7C15 mod 2^64)` of `kdcache.keyed`:

    row  = hash(key of "kdcache-draws-1|<seed>", the row's key)
    draw = the upper 53 bits of hash(row, number) / 2^53

torch has no unsigned 64-bit arithmetic on every device, so int64 is used: products and sums wrap alike, and a logical
shift is an arithmetic one whose upper bits are masked off.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from kdcache.keyed import key_of

__all__ = ["draws"]

_GOLDEN = int(np.uint64(0x9E3779B97F4A7C15).astype(np.int64))
_ROUNDS = tuple(
    (shift, int(np.uint64(f).astype(np.int64))) for shift, f in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB))
)


def draws(seed: int, keys: Tensor, count: int, first: int = 0) -> Tensor:
    """Numbers first, ..., first + count - 1 of each row: float64 [..., count] in [0, 1), for int64 keys [...]."""
    rows = _hash(torch.tensor(int(key_of(f"kdcache-draws-1|{seed}").astype(np.int64)), device=keys.device), keys)
    numbers = torch.arange(first, first + count, device=keys.device)
    return _shifted(_hash(rows[..., None], numbers), 11).double() * 2.0**-53


def _hash(key: Tensor, numbers: Tensor) -> Tensor:
    """64 uniform bits as int64."""
    mixed = (numbers + 1) * _GOLDEN + key
    for shift, factor in _ROUNDS:
        mixed = (mixed ^ _shifted(mixed, shift)) * factor
    return mixed ^ _shifted(mixed, 31)


def _shifted(bits: Tensor, places: int) -> Tensor:
    """Logical shift to the right."""
    return (bits >> places) & ((1 << (64 - places)) - 1)
