"""A seeded choice of rows that stays the same for ever: no library's generator is asked."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from kdcache.sources.source import Ids

__all__ = ["choose", "hashes", "splitmix64"]

_MASK = (1 << 64) - 1


def splitmix64(values: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """One step of SplitMix64 from each state (Steele, Lea, Flood 2014, "Fast splittable pseudorandom number
    generators", figure 17): a bijection of the 64-bit integers."""
    with np.errstate(over="ignore"):
        mixed = values + np.uint64(0x9E3779B97F4A7C15)
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return mixed ^ (mixed >> np.uint64(31))


def hashes(ids: Ids, seed: int, domain: bytes) -> npt.NDArray[np.uint64]:
    """splitmix64(splitmix64(splitmix64(seed) ^ domain) ^ id), seed modulo 2^64, domain = eight bytes, big-endian."""
    key = splitmix64(np.array([seed & _MASK], np.uint64)) ^ np.uint64(int.from_bytes(domain, "big"))
    return splitmix64(splitmix64(key) ^ ids.astype(np.uint64))


def choose(ids: Ids, count: int, seed: int, domain: bytes) -> Ids:
    """The `count` ids with the smallest hashes, ascending. A longer choice contains every shorter one."""
    order = np.lexsort((ids, hashes(ids, seed, domain)))
    return np.sort(ids[order[:count]])
