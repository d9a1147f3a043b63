from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kdcache.codecs.ascending import ascending_bytes, check_ascending, merged, pack_ascending, unpack_ascending
from kdcache.errors import StoreDamaged


@st.composite
def rows(draw: st.DrawFn) -> tuple[list[list[int]], int]:
    classes = draw(st.one_of(st.integers(1, 200), st.integers(1, 2**24)))
    count = draw(st.integers(1, 40))
    ids = st.integers(0, classes - 1)
    edge = st.sampled_from(sorted({0, classes // 2, classes - 1}))
    row = st.lists(st.one_of(ids, edge), min_size=count, max_size=count).map(sorted)
    return draw(st.lists(row, min_size=1, max_size=4)), classes


@given(rows())
def test_round_trip(given_rows: tuple[list[list[int]], int]) -> None:
    ids, classes = given_rows
    packed = pack_ascending(torch.tensor(ids), classes)
    count = len(ids[0])
    assert packed.dtype == torch.uint8
    assert packed.shape == (len(ids), ascending_bytes(count, classes))
    check_ascending("x", packed, count, classes)
    assert unpack_ascending(packed, count, classes).tolist() == ids
    assert ascending_bytes(count, classes) * 8 <= count * (2 + max(0, math.log2(classes / count))) + count + 16


@given(rows())
def test_merged_are_the_distinct_ids_and_their_counts(given_rows: tuple[list[list[int]], int]) -> None:
    ids, _ = given_rows
    found, times = merged(torch.tensor(ids))
    for row, distinct, counts in zip(ids, found.tolist(), times.tolist(), strict=True):
        expected = sorted(set(row))
        spare = [0] * (len(row) - len(expected))
        assert distinct == expected + spare
        assert counts == [row.count(each) for each in expected] + spare


def test_bytes_by_hand() -> None:
    """1, 5, 5, 6 of 8: no low bits (4 + 7 bits) take no more than one (4 + 4 + 3), so none are used."""
    packed = pack_ascending(torch.tensor([[1, 5, 5, 6]]), 8)
    # marks at 1 + 0, 5 + 1, 5 + 2, 6 + 3, the least significant bit first
    assert packed.tolist() == [[0b11000010, 0b00000010]]
    wide = pack_ascending(torch.tensor([[3, 700, 1000]]), 1001)
    # 8 low bits: 3, 188, 232 side by side; high parts 0, 2, 3 mark 0, 3 and 5
    assert wide.tolist() == [[3, 188, 232, 0b101001]]


def test_lengths() -> None:
    """Against plain ids: 28, 60 and 68 bytes."""
    assert ascending_bytes(32, 100) == 15
    assert ascending_bytes(32, 32_768) == 48
    assert ascending_bytes(32, 128_256) == 56


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [(0, 0xFF, "a row of"), (1, 0, "a row of"), (-1, 0x80, "a row of")],
)
def test_other_marks_are_damage(place: int, value: int, message: str) -> None:
    packed = pack_ascending(torch.tensor([[1, 5, 5, 6], [0, 0, 0, 7]]), 8)
    packed[1, place] = value
    with pytest.raises(StoreDamaged, match=f"column 'x' has {message}"):
        check_ascending("x", packed, 4, 8)


def test_ids_past_the_classes_and_out_of_order_are_damage() -> None:
    packed = pack_ascending(torch.tensor([[3, 700, 1000]]), 1001)
    packed[0, 2] = 0xFF
    with pytest.raises(StoreDamaged, match="column 'x' holds class 1023 of 1001"):
        check_ascending("x", packed, 3, 1001)
    packed = pack_ascending(torch.tensor([[3, 4, 1000]]), 1001)
    packed[0, 0] = 0xFF
    with pytest.raises(StoreDamaged, match="do not ascend"):
        check_ascending("x", packed, 3, 1001)


def test_repeats_are_damage_where_ids_are_distinct() -> None:
    packed = pack_ascending(torch.tensor([[1, 5, 5, 6]]), 8)
    check_ascending("x", packed, 4, 8)
    with pytest.raises(StoreDamaged, match="do not ascend"):
        check_ascending("x", packed, 4, 8, distinct=True)


def test_no_rows() -> None:
    packed = pack_ascending(torch.zeros(0, 5, dtype=torch.int64), 9)
    check_ascending("x", packed, 5, 9)
    assert unpack_ascending(packed, 5, 9).shape == (0, 5)
