"""The order: pinned by golden vectors, equal to a plain reference, a bijection, well mixed, cheap to build."""

from __future__ import annotations

import hashlib
import itertools
import time
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from kdcache.errors import UsageError
from kdcache.loader.order import Order

WORD = (1 << 64) - 1
GOLDEN = 0x9E3779B97F4A7C15


def reference(
    starts: Sequence[int], seed: int, epoch: int, lanes: int, shuffle: bool, mask: NDArray[np.bool_] | None
) -> list[int]:
    """The module's docstring, word for word, row by row."""

    def mix(z: int) -> int:
        z = ((z ^ z >> 30) * 0xBF58476D1CE4E5B9) & WORD
        z = ((z ^ z >> 27) * 0x94D049BB133111EB) & WORD
        return z ^ z >> 31

    def hashed(domain: str, i: int) -> int:
        digest = hashlib.blake2b(f"kdcache-order-1|{domain}|{seed}|{epoch}".encode(), digest_size=8).digest()
        return mix((int.from_bytes(digest, "little") + (i + 1) * GOLDEN) & WORD) >> 32

    selected = [[row for row in range(a, b) if mask is None or mask[row]] for a, b in itertools.pairwise(starts)]
    blocks = [g for g, rows in enumerate(selected) if rows]
    if not shuffle:
        return [row for g in blocks for row in selected[g]]
    blocks.sort(key=lambda g: hashed("block", g))
    count = min(lanes, len(blocks))
    streams = []
    for lane in range(count):
        parts = [sorted(selected[g], key=lambda row: hashed("row", row)) for g in blocks[lane::count]]
        moved = len(parts[0]) * lane // count
        rows = [row for part in parts for row in part]
        streams.append(rows[moved:] + rows[:moved])
    longest = max(map(len, streams))
    return [stream[at] for at in range(longest) for stream in streams if at < len(stream)]


def starts_of(sizes: Sequence[int]) -> NDArray[np.int64]:
    return np.concatenate(([0], np.cumsum(sizes))).astype(np.int64)


# (rows, block rows, seed, epoch, lanes, shuffle, m: only rows with row % m == 1) -> SHA-256 of the rows as int64
# little-endian; made with `reference` above
GOLDENS = {
    (1, 1, 0, 0, 64, True, None): "af5570f5a1810b7af78caf4bc70a660f0df51e42baf91d4de5b2328de0e83dfc",
    (1000, 16, 0, 0, 64, True, None): "99f9a9ff8a2d043a7f0d196c7e85a96010bfa3cc879894ef4322842ce29e75c3",
    (1000, 16, 0, 1, 64, True, None): "d1244b8601ee8b32205cac13e565271d414d26e0b1fe23e01cd6af3c4171d7cf",
    (1000, 16, 1, 0, 64, True, None): "50e1303adb8770c2f7b8f15e6b35fc9b589845f4ed234bdc754c59c288a44ad9",
    (1000, 16, 0, 0, 8, True, None): "9dfdfb23ace777e72e196200576a62b248071127b715c2856db4874d9163f3c8",
    (1003, 10, 42, 7, 64, True, None): "b16cd0339caed5e71b6d95630081b6403358839b6581f3688c1e5b919a64a2eb",
    (1003, 10, 42, 7, 1, True, None): "71f87eedd694cf752af1e4f1decc55e5f9f7be60b71e728c15bf3f23a9ce3f65",
    (1003, 10, 42, 7, 13, True, 3): "af69f5080cba081a7041b8716aa7f4dd65e0a7df9ed63053a98437eeae1240fb",
    (20000, 2048, 123456789012, 0, 64, True, None): "260cafda23df72b87a3b6e9ff3711b26d461d3284b64bf1025cfb7e88e7ed7d7",
    (20000, 64, 5, 100, 64, True, 7): "e6fdf74835e04b7d5c9804a572606290ee606e0da1f735e7ffd449435110f9ae",
    (1000, 16, 0, 0, 64, False, None): "702746827e553786bb026ac120cb58745fef3d3f554c33891809001cc37639f0",
    (1000, 16, 0, 0, 64, False, 5): "121932d7ad2766831dee8b05dcf36d3756d86cf3169afa2987e2214deaab57e3",
}


@pytest.mark.parametrize("case", GOLDENS, ids=str)
def test_golden_vectors(case: tuple[int, int, int, int, int, bool, int | None]) -> None:
    order = golden_order(case)
    assert hashlib.sha256(order[:].astype("<i8").tobytes()).hexdigest() == GOLDENS[case]


def golden_order(case: tuple[int, int, int, int, int, bool, int | None]) -> Order:
    rows, block_rows, seed, epoch, lanes, shuffle, modulus = case
    starts = np.append(np.arange(0, rows, block_rows), rows)
    mask = None if modulus is None else np.arange(rows) % modulus == 1
    return Order(starts, seed=seed, epoch=epoch, lanes=lanes, shuffle=shuffle, rows=mask)


@st.composite
def orders(draw: st.DrawFn) -> tuple[list[int], int, int, int, bool, NDArray[np.bool_] | None]:
    sizes = draw(st.lists(st.integers(1, 20), min_size=1, max_size=30))
    total = sum(sizes)
    mask = None
    if draw(st.booleans()):
        mask = np.random.default_rng(draw(st.integers(0, 99))).random(total) < draw(st.sampled_from((0.05, 0.5, 0.95)))
        mask[draw(st.integers(0, total - 1))] = True
    seed, epoch = draw(st.integers(0, 2**40)), draw(st.integers(0, 50))
    return sizes, seed, epoch, draw(st.integers(1, 40)), draw(st.booleans()), mask


@settings(max_examples=60, deadline=None)
@given(orders(), st.data())
def test_equals_the_reference_in_any_slice(
    case: tuple[list[int], int, int, int, bool, NDArray[np.bool_] | None], data: st.DataObject
) -> None:
    sizes, seed, epoch, lanes, shuffle, mask = case
    starts = starts_of(sizes)
    order = Order(starts, seed=seed, epoch=epoch, lanes=lanes, shuffle=shuffle, rows=mask)
    expected = reference(starts.tolist(), seed, epoch, lanes, shuffle, mask)
    assert len(order) == len(expected)
    for _ in range(3):
        a = data.draw(st.integers(0, len(expected)))
        b = data.draw(st.integers(a, len(expected)))
        rows, blocks = order.locate(a, b)
        assert rows.tolist() == expected[a:b]
        assert blocks.tolist() == (np.searchsorted(starts, expected[a:b], "right") - 1).tolist()
    assert order[::3].tolist() == expected[::3]
    assert order[-1] == expected[-1]


@settings(max_examples=60, deadline=None)
@given(orders(), st.integers(1, 17))
def test_ranks_share_every_row_once_and_visits_cover_them(
    case: tuple[list[int], int, int, int, bool, NDArray[np.bool_] | None], world: int
) -> None:
    sizes, seed, epoch, lanes, shuffle, mask = case
    starts = starts_of(sizes)
    order = Order(starts, seed=seed, epoch=epoch, lanes=lanes, shuffle=shuffle, rows=mask)
    selected = np.arange(starts[-1]) if mask is None else np.flatnonzero(mask)
    start = len(order) // 3
    assert sorted(order[:].tolist()) == selected.tolist()
    blocks = order.locate(0, len(order))[1]
    for rank in range(world):
        positions = np.arange(start + rank, len(order), world)
        visits = order.visits(start, rank=rank, world_size=world)
        assert set(visits.block.tolist()) == set(blocks[positions].tolist())
        assert (np.diff(visits.first) >= 0).all()
        for block, first, last in zip(*(v.tolist() for v in visits), strict=True):
            assert {first, last} <= set(positions.tolist())
            assert blocks[first] == blocks[last] == block
        for position in positions.tolist():
            here = (visits.first <= position) & (visits.last >= position)
            assert blocks[position] in visits.block[here]
            assert here.sum() <= order.lanes


def test_a_rank_reads_only_its_own_lanes_where_they_divide() -> None:
    order = Order(starts_of([8] * 32), seed=1, epoch=0, lanes=8)
    read = [set(order.visits(rank=rank, world_size=4).block.tolist()) for rank in range(4)]
    assert sum(map(len, read)) == 32
    assert set.union(*read) == set(range(32))


def test_the_next_seed_is_not_the_next_epoch() -> None:
    starts = starts_of([16] * 16)
    assert Order(starts, seed=0, epoch=1)[:].tolist() != Order(starts, seed=1, epoch=0)[:].tolist()


def test_class_balance_and_mixing_are_within_five_percent_of_uniform() -> None:
    rows, batch, classes, seeds = 20_480, 256, 100, 4
    labels = np.random.default_rng(7).integers(0, classes, rows)  # a store shuffled when it was written
    share = np.bincount(labels, minlength=classes) / rows

    def variation(order: NDArray[np.int64]) -> float:
        cells = np.arange(rows) // batch * classes + labels[order]
        counts = np.bincount(cells, minlength=rows // batch * classes).reshape(-1, classes)
        return float(np.abs(counts / batch - share).sum(1).mean() / 2)

    def together(first: NDArray[np.int64], second: NDArray[np.int64]) -> float:
        """Pairs of rows that share a batch in both epochs, over the number that uniform orders would give."""
        batch_of = np.empty((2, rows), np.int64)
        batch_of[0, first] = batch_of[1, second] = np.arange(rows) // batch
        cells = np.bincount(batch_of[0] * (rows // batch) + batch_of[1])
        pairs = rows * (batch - 1) / 2
        return float((cells * (cells - 1) / 2).sum() / (pairs * (batch - 1) / (rows - 1)))

    def epochs(seed: int) -> list[NDArray[np.int64]]:
        return [Order(starts_of([64] * (rows // 64)), seed=seed, epoch=epoch)[:] for epoch in (0, 1)]

    found = [epochs(seed) for seed in range(seeds)]
    draw = np.random.default_rng(0)
    uniform = np.mean([variation(draw.permutation(rows)) for _ in range(2 * seeds)])
    assert np.mean([variation(order) for pair in found for order in pair]) == pytest.approx(uniform, rel=0.05)
    assert np.mean([together(*pair) for pair in found]) == pytest.approx(1, abs=0.05)


def test_a_million_blocks_cost_arithmetic_only() -> None:
    starts = np.arange(0, 16_000_001, 16)
    began = time.perf_counter()
    order = Order(starts, seed=0, epoch=0)
    assert len(np.unique(order[9_000_000:9_000_256])) == 256
    assert len(order._sorted) <= 2 * order.lanes
    assert time.perf_counter() - began < 60


def test_bad_options_are_refused() -> None:
    starts = starts_of([4, 4])
    with pytest.raises(UsageError, match="lanes = 0"):
        Order(starts, seed=0, epoch=0, lanes=0)
    with pytest.raises(UsageError, match="bool mask of \\[8\\]"):
        Order(starts, seed=0, epoch=0, rows=np.ones(7, np.bool_))
    with pytest.raises(UsageError, match="no row is selected"):
        Order(starts, seed=0, epoch=0, rows=np.zeros(8, np.bool_))
    with pytest.raises(UsageError, match="step must be positive"):
        Order(starts, seed=0, epoch=0)[::-1]
