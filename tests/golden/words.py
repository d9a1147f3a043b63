"""What FORMAT.md says of bits, for the tests that decode by its words alone."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["bits", "number"]


def bits(row: Sequence[int]) -> list[int]:
    """The bits of a row of bytes, each byte's least first."""
    return [byte >> place & 1 for byte in row for place in range(8)]


def number(digits: Sequence[int]) -> int:
    """The unsigned integer of bits, the least first."""
    return sum(digit << place for place, digit in enumerate(digits))
