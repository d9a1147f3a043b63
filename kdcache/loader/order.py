"""The order of an epoch, version 1: a pure function of (blocks, seed, epoch, lanes, selected rows).

All arithmetic is on unsigned 64-bit integers and wraps; `^` is exclusive or, `//` rounds down.

Hash. h(block, i) and h(row, i) are the upper 32 bits of the keyed hash (see `kdcache.keyed`) of i under the texts
``kdcache-order-1|block|{seed}|{epoch}`` and ``kdcache-order-1|row|{seed}|{epoch}``, numbers in decimal.

Lanes. The blocks that hold at least one selected row, sorted by h(block, number), are b_0 .. b_{n-1}. There are
L = min(lanes, n) lanes; lane l holds b_l, b_{l+L}, b_{l+2L}, ... one after the other, each block's selected rows sorted
by h(row, number), where number counts over the whole store. In both sorts equal hashes go by ascending number. Then the
first (m * l) // L rows of lane l, m being the selected rows of its first block, move to the lane's end, so that the
block boundaries of the lanes never line up.

Positions. Position 0, 1, 2, ... take one row of each lane in turn, lane 0 first; a lane that has no row left is
skipped. Without shuffling, position p is the p-th selected row of the store (one lane, nothing sorted or moved).

Batch size, ranks and threads are no part of the order: a global batch is a run of positions, and a rank takes every
W-th of them.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import NamedTuple, overload

import numpy as np
from numpy.typing import NDArray

from kdcache.errors import UsageError
from kdcache.keyed import hash_places, key_of

__all__ = ["MAX_LANES", "ORDER_VERSION", "Order", "Visits"]

ORDER_VERSION = 1
MAX_LANES = 1024

Int64s = NDArray[np.int64]


class Visits(NamedTuple):
    """The block visits of a run of positions, by first position; a block that its lane's rotation cuts has two."""

    block: Int64s
    first: Int64s
    last: Int64s


def _shuffled(key: np.uint64, numbers: Int64s, base: int = 0) -> Int64s:
    """`numbers` (each below 2^32) sorted by the hash of base + number.

    The number stands below its hash in one word, so that one sort of plain words does it, ties included: five times
    as fast as an argsort.
    """
    low = numbers.astype(np.uint64)
    z = hash_places(key, low + np.uint64(base + 1))
    z &= np.uint64(0xFFFFFFFF00000000)
    z |= low
    z.sort()
    z &= np.uint64(0x00000000FFFFFFFF)
    return z.view(np.int64)


def _steps(distance: Int64s, stride: Int64s | int) -> Int64s:
    """ceil(distance / stride), at least 0: rounds of a lane that lie before a position `distance` away."""
    result: Int64s = np.maximum((distance + stride - 1) // stride, 0)
    return result


class Order:
    """An epoch over the blocks `block_starts` [G + 1]; `order[a:b]` is the store rows of positions a .. b - 1, int64.

    Building costs O(G) arithmetic; the rows of a block are sorted when a slice first needs them and kept while the
    block is in use, so memory does not grow with the store's rows (`rows`, a bool mask [N], is kept by reference).
    """

    def __init__(
        self,
        block_starts: Int64s,
        *,
        seed: int,
        epoch: int,
        lanes: int = 64,
        shuffle: bool = True,
        rows: NDArray[np.bool_] | None = None,
    ) -> None:
        if not 1 <= lanes <= MAX_LANES:
            raise UsageError(f"lanes = {lanes}: must be between 1 and {MAX_LANES}")
        self._starts = np.asarray(block_starts, np.int64)
        self._mask = rows
        self._row_key = key_of(f"kdcache-order-1|row|{int(seed)}|{int(epoch)}")
        self._shuffle = shuffle
        sizes = np.diff(self._starts)
        if rows is not None:
            if rows.shape != (int(self._starts[-1]),) or rows.dtype != np.bool_:
                raise UsageError(
                    f"rows is {rows.dtype}{list(rows.shape)}: must be a bool mask of "
                    f"[{int(self._starts[-1])}], one value per row of the store"
                )
            before = np.concatenate(([0], np.cumsum(rows, dtype=np.int64)))
            sizes = before[self._starts[1:]] - before[self._starts[:-1]]
        blocks = np.flatnonzero(sizes)
        if not len(blocks):
            raise UsageError("no row is selected: an epoch needs at least one")
        if shuffle:
            blocks = _shuffled(key_of(f"kdcache-order-1|block|{int(seed)}|{int(epoch)}"), blocks)
        self.lanes = min(lanes, len(blocks)) if shuffle else 1
        self._lay_lanes(blocks, sizes[blocks])
        self._lay_segments()
        self._sorted: OrderedDict[int, NDArray[np.int32]] = OrderedDict()

    def __len__(self) -> int:
        return int(self._lane_starts[-1])

    def _lay_lanes(self, blocks: Int64s, sizes: Int64s) -> None:
        """Each lane's visits, lane after lane: block, rows skipped inside it, its start on the line of all lanes."""
        count, lanes = len(blocks), self.lanes
        lane_of = np.arange(count) % lanes
        dealt = np.argsort(lane_of, kind="stable")
        per_lane = np.bincount(lane_of, minlength=lanes)
        heads = np.concatenate(([0], np.cumsum(per_lane)[:-1]))
        block, size, lane = blocks[dealt], sizes[dealt], lane_of[dealt]
        moved = size[heads] * np.arange(lanes) // lanes
        skip = np.zeros(count, np.int64)
        skip[heads] = moved
        size = size.copy()
        tails = np.flatnonzero(moved)  # lanes whose first block comes back at the end with the rows that moved there
        at = heads[tails] + per_lane[tails]
        head_blocks = block[heads[tails]]
        size[heads] -= moved
        self._block = np.insert(block, at, head_blocks)
        self._skip = np.insert(skip, at, 0)
        self._size = np.insert(size, at, moved[tails])
        self._lane = np.insert(lane, at, tails)
        self._start = np.cumsum(self._size) - self._size
        lengths = np.bincount(self._lane, weights=self._size, minlength=lanes).astype(np.int64)
        self._lane_starts = np.concatenate(([0], np.cumsum(lengths)))

    def _lay_segments(self) -> None:
        """Between two distinct lane lengths the lanes that still have rows are always the same."""
        lengths = np.diff(self._lane_starts)
        self._ends = np.unique(lengths)  # offset inside a lane at which segment j ends
        self._begins = np.concatenate(([0], self._ends[:-1]))
        alive = lengths >= self._ends[:, None]  # [segments, lanes]
        self._alive = alive.sum(1)
        self._seat = np.cumsum(alive, 1) - 1  # place of a lane among those alive
        self._segment_positions = np.concatenate(([0], np.cumsum(self._alive * (self._ends - self._begins))))

    @overload
    def __getitem__(self, key: int) -> int: ...
    @overload
    def __getitem__(self, key: slice) -> Int64s: ...
    def __getitem__(self, key: int | slice) -> Int64s | int:
        if isinstance(key, slice):
            start, stop, step = key.indices(len(self))
            if step < 1:
                raise UsageError(f"order[{key.start}:{key.stop}:{step}]: the step must be positive")
            return self.locate(start, max(start, stop))[0][::step]
        if not -len(self) <= key < len(self):
            raise IndexError(key)
        return int(self.locate(key % len(self), key % len(self) + 1)[0][0])

    def locate(self, start: int, stop: int) -> tuple[Int64s, NDArray[np.int32]]:
        """Store rows and the blocks that hold them, for positions start .. stop - 1."""
        rows = np.empty(stop - start, np.int64)
        blocks = np.empty(stop - start, np.int32)
        if start >= stop:
            return rows, blocks
        first = int(np.searchsorted(self._segment_positions, start, "right")) - 1
        last = int(np.searchsorted(self._segment_positions, stop, "left"))
        for segment in range(first, last):
            self._fill(segment, start, stop, rows, blocks)
        while len(self._sorted) > 2 * self.lanes:
            self._sorted.popitem(last=False)
        return rows, blocks

    def _fill(self, segment: int, start: int, stop: int, rows: Int64s, blocks: NDArray[np.int32]) -> None:
        """The part of positions start .. stop - 1 in one segment: every visit there is a slice with a stride."""
        begin, stride = int(self._begins[segment]), int(self._alive[segment])
        base = int(self._segment_positions[segment])
        until = min(stop, int(self._segment_positions[segment + 1]))
        alive = np.diff(self._lane_starts) >= self._ends[segment]
        lanes = np.flatnonzero(alive)
        seats = np.arange(stride)
        low = begin + _steps(max(start, base) - base - seats, stride)  # offsets inside each lane
        high = begin + _steps(until - base - seats, stride)
        line = self._lane_starts[lanes]
        visit = np.searchsorted(self._start, line + low, "right") - 1
        stops = np.searchsorted(self._start, line + high, "left")
        for seat, lane_start, a, b, v, v_stop in zip(
            range(stride),
            line.tolist(),
            low.tolist(),
            high.tolist(),
            visit.tolist(),
            stops.tolist(),
            strict=True,
        ):
            while v < v_stop and a < b:
                inside = lane_start + a - int(self._start[v])
                count = min(b - a, int(self._size[v]) - inside)
                block, skip = int(self._block[v]), int(self._skip[v]) + inside
                at = base + (a - begin) * stride + seat - start
                where = slice(at, at + (count - 1) * stride + 1, stride)
                np.add(self._rows_of(block)[skip : skip + count], self._starts[block], out=rows[where])
                blocks[where] = block
                if inside + count == int(self._size[v]):
                    self._sorted.pop(block, None)
                a, v = a + count, v + 1

    def _rows_of(self, block: int) -> NDArray[np.int32]:
        """The block's selected rows in the order of the epoch, counted from the block's first row."""
        known = self._sorted.get(block)
        if known is not None:
            self._sorted.move_to_end(block)
            return known
        start, stop = int(self._starts[block]), int(self._starts[block + 1])
        if self._mask is None:
            inside = np.arange(stop - start, dtype=np.int64)
        else:
            inside = np.flatnonzero(self._mask[start:stop])
        if self._shuffle:
            inside = _shuffled(self._row_key, inside, start)
        self._sorted[block] = inside.astype(np.int32)
        return self._sorted[block]

    def visits(self, start: int = 0, stop: int | None = None, *, rank: int = 0, world_size: int = 1) -> Visits:
        """Visits of positions start + rank, start + rank + world_size, ... below stop, each with its first and last."""
        stop = len(self) if stop is None else stop
        offset = self._start - self._lane_starts[self._lane]
        first_segment = np.searchsorted(self._ends, offset, "right")
        last_segment = np.searchsorted(self._ends, offset + self._size - 1, "right")
        pieces = last_segment - first_segment + 1
        piece_starts = np.cumsum(pieces) - pieces
        visit = np.repeat(np.arange(len(offset)), pieces)
        segment = first_segment[visit] + np.arange(len(visit)) - piece_starts[visit]
        low = np.maximum(offset[visit], self._begins[segment])
        high = np.minimum((offset + self._size)[visit], self._ends[segment])
        stride = self._alive[segment]
        origin = (
            self._segment_positions[segment]
            + (low - self._begins[segment]) * stride
            + self._seat[segment, self._lane[visit]]
        )
        k_low = _steps(start - origin, stride)
        k_high = np.minimum(high - low, _steps(stop - origin, stride))
        reach, period = self._reach(world_size)
        ahead = reach[segment, (start + rank - origin - k_low * stride) % world_size]
        k_first = k_low + ahead
        k_last = k_first + (k_high - 1 - k_first) // period[segment] * period[segment]
        met = (ahead >= 0) & (k_first < k_high)
        far = np.iinfo(np.int64).max
        firsts = np.minimum.reduceat(np.where(met, origin + k_first * stride, far), piece_starts)
        lasts = np.maximum.reduceat(np.where(met, origin + k_last * stride, -1), piece_starts)
        seen = np.flatnonzero(lasts >= 0)
        seen = seen[np.argsort(firsts[seen], kind="stable")]
        return Visits(self._block[seen], firsts[seen], lasts[seen])

    def _reach(self, world_size: int) -> tuple[Int64s, Int64s]:
        """By segment: fewest rounds k with k * stride = r modulo world_size (-1: never), for every r; their period."""
        table = np.full((len(self._alive), world_size), -1, np.int64)
        rounds = np.arange(world_size)[::-1]
        for segment, stride in enumerate(self._alive.tolist()):
            table[segment, rounds * stride % world_size] = rounds
        return table, world_size // np.gcd(self._alive, world_size)
