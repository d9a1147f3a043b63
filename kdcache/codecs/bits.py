"""Small unsigned integers side by side, `bits` each, in rows of bytes.

Value j of a row has its bits j * bits to (j + 1) * bits - 1, the least significant first; bit i of a row is bit i % 8,
counted from the least, of byte i // 8; bits left over are 0. Both ways go by runs of 64 // bits values, which fill one
64-bit word at most, so that a value costs few passes over memory. Words are little-endian, as every host in use is.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from kdcache.errors import UsageError

__all__ = ["pack", "packed_bytes", "unpack"]

WORD = 64


def packed_bytes(count: int, bits: int) -> int:
    """Bytes of a row of `count` values."""
    return (count * bits + 7) // 8


def pack(values: Tensor, bits: int) -> Tensor:
    """uint8 [..., ceil(K * bits / 8)] of int64 [..., K]; bits 1 to 32. Each value keeps its lowest `bits` bits."""
    *lead, count = values.shape
    word, shift = _runs(count, bits, values.device)
    within = torch.arange(WORD // bits, device=values.device) * bits
    padded = torch.nn.functional.pad(values.long() & (1 << bits) - 1, (0, len(word) * len(within) - count))
    run = padded.reshape(math.prod(lead), len(word), len(within)).bitwise_left_shift_(within).sum(2)
    words = torch.zeros(len(run), _words(count, bits), dtype=torch.int64, device=values.device)
    words.index_add_(1, word, run << shift)  # no two values share a bit, so adding is joining
    if WORD % bits:
        words.index_add_(1, word + 1, (run >> 1 & ~(-1 << WORD - 1)) >> WORD - 1 - shift)  # what did not go in
    size = packed_bytes(count, bits)
    return words.view(torch.uint8)[:, :size].reshape(*lead, size)


def unpack(packed: Tensor, bits: int, count: int) -> Tensor:
    """int64 [..., count] of the uint8 [..., ceil(count * bits / 8)] that `pack` gave."""
    *lead, size = packed.shape
    if packed.dtype != torch.uint8 or size != packed_bytes(count, bits):
        raise UsageError(
            f"packed values are {packed.dtype} {list(packed.shape)}, and {count} of {bits} bits each need uint8 "
            f"[..., {packed_bytes(count, bits)}]"
        )
    rows = math.prod(lead)
    word, shift = _runs(count, bits, packed.device)
    spare = 8 * _words(count, bits) - size
    run = torch.nn.functional.pad(packed.reshape(rows, size), (0, spare)).view(torch.int64)
    if WORD % bits:  # else every run is a word; here it may begin inside one and end in the next
        # gather, not index_select: a third of the time on a CPU.
        above = run.gather(1, (word + 1).expand(rows, -1)).bitwise_left_shift_(WORD - 1 - shift).bitwise_left_shift_(1)
        run = run.gather(1, word.expand(rows, -1)).bitwise_right_shift_(shift)
        run = run.bitwise_and_(~(-1 << WORD - 1 - shift << 1)).bitwise_or_(above)
    place = torch.arange(count, device=packed.device)
    values = run.gather(1, (place // (WORD // bits)).expand(rows, -1))
    values = values.bitwise_right_shift_(place % (WORD // bits) * bits).bitwise_and_((1 << bits) - 1)
    return values.reshape(*lead, count)


def _runs(count: int, bits: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Of each run of values the word that it begins in, and its first bit there."""
    if not 1 <= bits <= 32:
        raise UsageError(f"bits = {bits}; values of 1 to 32 bits can be packed")
    each = WORD // bits
    start = torch.arange(-(-count // each), device=device) * (each * bits)
    return start // WORD, start % WORD


def _words(count: int, bits: int) -> int:
    """Words of a row while it is worked on: up to the end of the last run, and one that it might spill into."""
    each = WORD // bits
    return -(-count // each) * each * bits // WORD + 2
