"""Keyed numbers: values that no later version may change."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from kdcache.keyed import keyed_hash, keyed_order

MASK = 2**64 - 1


def independent(text: str, number: int) -> int:
    """The same function in Python's own integers."""
    key = int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")
    x = (key + (number + 1) * 0x9E3779B97F4A7C15) & MASK
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & MASK
    return x ^ (x >> 31)


@pytest.mark.parametrize("text", ["", "kdcache-plan-1|0", "é|-3"])
def test_against_python_integers(text: str) -> None:
    numbers = [0, 1, 2, 255, 10**6, 2**31, 2**40, 2**63 - 1]
    found = keyed_hash(text, np.array(numbers, np.int64))
    assert found.dtype == np.uint64
    assert found.tolist() == [independent(text, number) for number in numbers]


def test_golden() -> None:
    assert [f"{x:016x}" for x in keyed_hash("kdcache-plan-1|0", np.arange(3)).tolist()] == [
        "d76c125c6f992093",
        "15ae7b9e319ac923",
        "c0a88d3d91278f05",
    ]


def test_shapes_and_order() -> None:
    numbers = np.arange(12).reshape(3, 4)
    assert np.array_equal(keyed_hash("x", numbers).ravel(), keyed_hash("x", numbers.ravel()))
    order = keyed_order("x", np.arange(1000))
    assert np.array_equal(np.sort(order), np.arange(1000))
    assert (np.diff(keyed_hash("x", order).astype(object)) > 0).all()
    assert keyed_order("x", np.array([7, 7, 7])).tolist() == [0, 1, 2]
    assert keyed_order("x", np.arange(0)).tolist() == []


def test_neighbouring_keys_and_numbers_are_unlike() -> None:
    """Half of the 64 bits flip, give or take five standard deviations of the mean of 4096 pairs."""
    numbers = np.arange(4096)
    for other in (keyed_hash("seed 1", numbers), keyed_hash("seed 0", numbers + 1)):
        flipped = np.bitwise_count(keyed_hash("seed 0", numbers) ^ other)
        assert abs(flipped.mean() - 32) < 5 * 4 / 64
