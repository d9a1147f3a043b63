from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kdcache.codecs.bits import pack, packed_bytes, unpack
from kdcache.errors import UsageError


def test_bytes_by_hand() -> None:
    # 5, 2, 7 in three bits each, the least first: 101 010 111 from bit 0 on, read backwards in a byte.
    assert pack(torch.tensor([5, 2, 7]), 3).tolist() == [0b11010101, 0b1]
    assert pack(torch.tensor([[0x1FFFF, 0], [0, 1]]), 17).tolist() == [[255, 255, 1, 0, 0], [0, 0, 2, 0, 0]]
    assert pack(torch.tensor([0x89ABCDEF]), 32).tolist() == [0xEF, 0xCD, 0xAB, 0x89]


@settings(max_examples=120, deadline=None)
@given(st.integers(1, 32), st.integers(0, 140), st.lists(st.integers(0, 3), max_size=3), st.integers(0, 10_000))
def test_every_bit_is_where_it_is_said_to_be(bits: int, count: int, lead: list[int], seed: int) -> None:
    random = np.random.default_rng(seed)
    values = random.integers(0, 2**bits, (*lead, count))
    values[random.random(values.shape) < 0.2] = 2**bits - 1
    packed = pack(torch.from_numpy(values), bits)
    singly = (values[..., None] >> np.arange(bits) & 1).astype(np.uint8).reshape(*lead, count * bits)
    wanted = np.packbits(singly, axis=-1, bitorder="little")
    assert packed.dtype == torch.uint8
    assert packed.shape == (*lead, packed_bytes(count, bits)) == wanted.shape
    assert np.array_equal(packed, wanted)
    unpacked = unpack(packed, bits, count)
    assert unpacked.dtype == torch.int64
    assert np.array_equal(unpacked, values)


def test_what_is_too_large_harms_no_neighbour() -> None:
    values = torch.tensor([3, 2**40 + 5, -1, 9])
    assert unpack(pack(values, 4), 4, 4).tolist() == [3, 5, 15, 9]


def test_bits_left_over_are_not_read() -> None:
    packed = pack(torch.arange(5), 3)
    packed[-1] |= 0x80
    assert unpack(packed, 3, 5).tolist() == [0, 1, 2, 3, 4]


def test_strided_rows() -> None:
    values = torch.randint(0, 2**17, (6, 40), generator=torch.Generator().manual_seed(0))
    packed = pack(values.repeat_interleave(2, 1)[:, ::2], 17)
    assert torch.equal(packed, pack(values, 17))
    wide = torch.cat([packed, packed], 1)[:, : packed.shape[1]]
    assert not wide.is_contiguous()
    assert torch.equal(unpack(wide, 17, 40), values)


@pytest.mark.parametrize("bits", [0, 33, -1])
def test_other_widths_are_refused(bits: int) -> None:
    with pytest.raises(UsageError, match=f"bits = {bits}"):
        pack(torch.zeros(2, 3, dtype=torch.int64), bits)


def test_rows_of_another_size_or_dtype_are_refused() -> None:
    packed = pack(torch.zeros(2, 10, dtype=torch.int64), 7)
    with pytest.raises(UsageError, match=r"\[2, 9\], and 11 of 7 bits each need uint8 \[..., 10\]"):
        unpack(packed, 7, 11)
    with pytest.raises(UsageError, match=r"int16 .* need uint8"):
        unpack(packed.short(), 7, 10)
