"""The resident pool: blocks of columns in memory allocated once, filled by reader threads ahead of the consumer.

Threads load the visits of an epoch in the order of their first position; a slot is given away again only when the
consumer has passed the last position of its visit. At any one position at most one visit per lane is under way, so
lanes + 1 slots are enough to go on, and more let the threads read further ahead. Where every block has a slot, each is
read and verified once and stays from epoch to epoch.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kdcache.errors import StorageError, UsageError
from kdcache.loader.order import Int64s, Visits
from kdcache.loader.slots import Slots

__all__ = ["BlockPool", "BlockReader", "Column", "least_slots"]

_FAR = int(np.iinfo(np.int64).max)
_LEAVE_SECONDS = 1.0  # how long close() waits for a thread that may be stuck in a read


class BlockReader(Protocol):
    """What the pool needs of a store; `read_block` is called from several threads."""

    path: Path

    def read_block(self, block: int, column: str, out: NDArray[np.uint8]) -> None: ...


class Column(NamedTuple):
    """A column on disk: whose it is, its name there, and its bytes per row."""

    reader: BlockReader
    name: str
    width: int


def least_slots(blocks: int, lanes: int) -> int:
    """Slots without which the consumer could come to a standstill: one a lane and one more, or one for each block."""
    return min(lanes + 1, blocks)


class BlockPool:
    """Slots for the blocks of `columns` within `memory_budget` bytes; `blocks` are those that will be asked for."""

    def __init__(
        self,
        columns: Sequence[Column],
        block_starts: Int64s,
        blocks: Int64s,
        *,
        lanes: int,
        memory_budget: int,
        threads: int,
        timeout: float,
    ) -> None:
        self._columns, self._starts = tuple(columns), block_starts
        self._threads, self._timeout = threads, timeout
        self._slot_rows = int(np.diff(block_starts)[blocks].max())
        width = sum(column.width for column in columns)
        slot_bytes = self._slot_rows * width
        self.slots = min(len(blocks), memory_budget // slot_bytes)
        self.resident = self.slots == len(blocks)
        if self.slots < (least := least_slots(len(blocks), lanes)):
            raise UsageError(
                f"{columns[0].reader.path}: memory_budget = {memory_budget} bytes holds {self.slots} blocks of "
                f"{self._slot_rows} rows x {width} bytes, and {lanes} lanes need {least}: raise "
                f"memory_budget to {least * slot_bytes}, or lower lanes"
            )
        self.bytes = self.slots * slot_bytes
        self._memory = [np.empty((self.slots * self._slot_rows, column.width), np.uint8) for column in columns]
        self._tensors = [_widest(torch.from_numpy(memory)) for memory in self._memory]
        self._most_visits = max(lanes, (lanes + self.slots) // 2)  # at once; the other slots are for reading ahead
        self._shift = np.zeros(len(block_starts) - 1, np.int64)  # row of the pool minus row of the store, by block
        self._state = threading.Condition()
        self._slots = Slots(self.slots)
        self._waiting: dict[int, list[int]] = {}  # visits by the block that is being read for them
        self._reading: dict[int, str] = {}
        self._error: BaseException | None = None
        self._run, self._progress = 0, 0.0
        self._exchanged: set[int] = set()
        self._running: list[threading.Thread] = []
        self.blocks_read, self.bytes_read, self.wait_seconds = 0, 0, 0.0
        nothing = np.empty(0, np.int64)
        self._plan(Visits(nothing, nothing, nothing))

    def _plan(self, visits: Visits) -> None:
        self._visits, self._lasts = visits, np.sort(visits.last)
        self._done = [False] * len(visits.block)
        self._next = self._prefix = 0

    def start(self, visits: Visits) -> None:
        """Begin to load `visits` in their order; what an earlier run left unread is forgotten."""
        self.stop()
        if self._slots.loaded == self.slots and self.resident:
            return
        self._plan(visits)
        self._running = [
            threading.Thread(target=self._read_visits, args=(self._run,), name=f"kdcache-read-{i}", daemon=True)
            for i in range(min(self._threads, len(visits.block)))
        ]
        for thread in self._running:
            thread.start()

    def stop(self) -> None:
        """End the run. A thread that is reading leaves after its block, whose slot is out of use until then."""
        with self._state:
            self._run += 1
            self._error = None
            self._waiting = {}
            self._slots.release_all()
            self._plan(Visits(*(values[:0] for values in self._visits)))
            self._state.notify_all()

    def exchange(self, columns: Sequence[Column]) -> None:
        """Read `columns` from now on, each in the place of the one that was given there, of the same width.

        Ends the run. What stays the same is not read again for blocks that are in memory.
        """
        self.stop()
        changed = {at for at, (old, new) in enumerate(zip(self._columns, columns, strict=True)) if old != new}
        assert all(self._columns[at].width == columns[at].width for at in changed), "columns of one width"
        with self._state:
            if changed:
                self._columns = tuple(columns)
                self._exchanged |= changed
                self._slots.expire()

    def close(self) -> None:
        """Stop, and wait a moment for the threads to leave."""
        self.stop()
        for thread in self._running:
            if thread is not threading.current_thread():
                thread.join(_LEAVE_SECONDS)

    def reach(self, start: int) -> int:
        """The largest stop for which the blocks of positions start .. stop - 1 fit at once; always above start."""
        visit = self._most_visits + int(np.searchsorted(self._lasts, start))
        return _FAR if self.resident or visit >= len(self._done) else int(self._visits.first[visit])

    def require(self, stop: int) -> None:
        """Wait until every visit that begins before position `stop` is loaded.

        Raises what a reader thread raised, or StorageError once no block has come for `timeout` seconds.
        """
        count = int(np.searchsorted(self._visits.first, stop))
        if self._prefix >= count:
            return
        began = time.monotonic()
        with self._state:
            while not self._loaded(count):
                if self._error is not None:
                    raise self._error
                left = max(began, self._progress) + self._timeout - time.monotonic()
                if left <= 0:
                    raise StorageError(self._stalled())
                self._state.wait(left)
        self.wait_seconds += time.monotonic() - began

    def _loaded(self, count: int) -> bool:
        while self._prefix < count and self._done[self._prefix]:
            self._prefix += 1
        return self._prefix >= count

    def _stalled(self) -> str:
        block = int(self._visits.block[self._prefix])
        column = self._reading.get(block, "any column")
        path = next((c.reader.path for c in self._columns if c.name == column), self._columns[0].reader.path)
        return (
            f"{path}: block {block}, {column}: not read within {self._timeout:g} s: the disk or network stalls; "
            "look at it, or raise the loader's timeout"
        )

    def release(self, position: int) -> None:
        """The consumer has copied every position below `position`: slots that end there may be filled anew."""
        if self.resident:
            return
        with self._state:
            if self._slots.release(position):
                self._state.notify_all()

    def places(self, rows: Int64s, blocks: NDArray[np.int32]) -> Tensor:
        """Where in the pool these store rows lie, int64 [B]; their blocks are loaded and not yet released."""
        return torch.from_numpy(rows + self._shift[blocks])

    def room(self, rows: Int64s, blocks: NDArray[np.int32]) -> tuple[Tensor, Tensor]:
        """How far from each row the first and the last row of its block are, int64 [B] each."""
        return torch.from_numpy(self._starts[blocks] - rows), torch.from_numpy(self._starts[blocks + 1] - 1 - rows)

    def gather(self, column: int, places: Tensor) -> Tensor:
        """A fresh uint8 [B, width] of one column."""
        return self._tensors[column].index_select(0, places).view(torch.uint8)

    def _read_visits(self, run: int) -> None:
        while (claimed := self._claim(run)) is not None:
            block, slot, partly = claimed
            while True:
                columns = self._columns
                error = self._read(block, slot, columns, partly)
                with self._state:
                    if error is not None or columns is self._columns:
                        self._settle(block, error)
                        break
                partly = True  # some were exchanged while they were read

    def _settle(self, block: int, error: BaseException | None) -> None:
        """The block is in its slot, or could not be read."""
        waiting = self._waiting.pop(block, [])
        self._reading.pop(block, None)
        if error is None:
            self._slots.set_loaded(block)
            self._progress = time.monotonic()
            for visit in waiting:
                self._done[visit] = True
        else:
            self._slots.forget(block)
            if waiting:
                self._error = error
        self._state.notify_all()

    def _claim(self, run: int) -> tuple[int, int, bool] | None:
        """The next block to read, its slot once there is one, and whether only exchanged columns are to be read; None
        where the run has ended."""
        with self._state:
            while run == self._run and self._error is None and self._next < len(self._done):
                visit = self._next
                block = int(self._visits.block[visit])
                claim = self._slots.claim(block, int(self._visits.last[visit]))
                if claim is None:
                    self._state.wait()
                    continue
                slot, fresh, partly = claim
                self._next += 1
                if fresh:
                    self._waiting[block] = [visit]
                    self._shift[block] = slot * self._slot_rows - int(self._starts[block])
                    return block, slot, partly
                if self._slots.is_loaded(block):
                    self._done[visit] = True
                    self._state.notify_all()
                else:
                    self._waiting.setdefault(block, []).append(visit)
            return None

    def _read(self, block: int, slot: int, columns: Sequence[Column], partly: bool) -> BaseException | None:
        rows = int(self._starts[block + 1] - self._starts[block])
        first = slot * self._slot_rows
        wanted = sorted(self._exchanged) if partly else range(len(columns))
        try:
            for column, memory in ((columns[at], self._memory[at]) for at in wanted):
                self._reading[block] = column.name
                column.reader.read_block(block, column.name, memory[first : first + rows].reshape(-1))
        except BaseException as error:  # whatever it is, the consumer must hear of it rather than wait
            return error
        with self._state:
            self.blocks_read += 1
            self.bytes_read += rows * sum(columns[at].width for at in wanted)
        return None


def _widest(memory: Tensor) -> Tensor:
    """The same rows as the widest integers that divide them: index_select then moves fewer, larger items."""
    for size, dtype in ((8, torch.int64), (4, torch.int32), (2, torch.int16)):
        if memory.shape[1] % size == 0:
            return memory.view(dtype)
    return memory
