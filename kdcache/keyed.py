"""Keyed pseudo-random numbers that never change: every seeded choice and order in kdcache is made from them.

Library generators promise no stream across versions, and `seed + epoch` makes run (0, e + 1) repeat run (1, e). So a
choice is keyed by a text that says what it is for, and is a pure function of that text and an integer:

    key     = the 8 bytes of BLAKE2b-64(text), little-endian
    hash(i) = mix(key + (i + 1) * 0x9E3779B97F4A7C15 mod 2^64)

where mix is the finaliser of SplitMix64 (Steele, Lea and Flood 2014, figure 17, variant 13 of Stafford's constants).
"""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

__all__ = ["hash_places", "key_of", "keyed_hash", "keyed_order"]

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_ROUNDS = ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB))


def key_of(text: str) -> np.uint64:
    """The key that a text stands for."""
    return np.uint64(int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little"))


def hash_places(key: np.uint64, places: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """hash(i) for i + 1 in `places`, in place: for hot loops that hold their key and their memory."""
    places *= _GOLDEN
    places += key
    shifted = np.empty_like(places)
    for shift, factor in _ROUNDS:
        np.right_shift(places, np.uint64(shift), out=shifted)
        places ^= shifted
        places *= np.uint64(factor)
    np.right_shift(places, np.uint64(31), out=shifted)
    places ^= shifted
    return places


def keyed_hash(text: str, numbers: NDArray[np.int64]) -> NDArray[np.uint64]:
    """One uniform 64-bit number for each integer of `numbers` (any shape), keyed by `text`."""
    return hash_places(key_of(text), np.asarray(numbers).astype(np.uint64) + np.uint64(1))


def keyed_order(text: str, numbers: NDArray[np.int64]) -> NDArray[np.int64]:
    """The permutation that sorts `numbers` (one axis) by their keyed hash, ties by place."""
    return np.argsort(keyed_hash(text, numbers), kind="stable")
