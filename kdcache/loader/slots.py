"""Which block lies in which slot of the pool. Plain bookkeeping: whoever calls it holds the pool's lock."""

from __future__ import annotations

import heapq
from collections import OrderedDict

__all__ = ["Slots"]


class Slots:
    """`count` slots. A slot is held while a claim on its block has a last position that is not released yet.

    A free slot keeps its block until the slot is needed, the longest free one first, so a block that comes back soon is
    not read again, and with one slot for each block none ever is.
    """

    def __init__(self, count: int) -> None:
        self._slot_of: dict[int, int] = {}
        self._loaded: set[int] = set()
        self._stale: set[int] = set()
        self._claims = [0] * count
        self._free: OrderedDict[int, int | None] = OrderedDict((slot, None) for slot in range(count))
        self._releases: list[tuple[int, int]] = []

    def claim(self, block: int, last: int) -> tuple[int, bool, bool] | None:
        """The block's slot, held up to position `last`, whether it must be loaded, and whether it holds the block's
        columns but for those that were exchanged; None where no slot is free."""
        slot = self._slot_of.get(block)
        stale = block in self._stale
        fresh = slot is None or stale
        if slot is None:
            if not self._free:
                return None
            slot, evicted = self._free.popitem(last=False)
            if evicted is not None:
                del self._slot_of[evicted]
                self._loaded.discard(evicted)
                self._stale.discard(evicted)
            self._slot_of[block] = slot
        self._free.pop(slot, None)
        self._stale.discard(block)
        self._claims[slot] += 1
        heapq.heappush(self._releases, (last, block))
        return slot, fresh, stale

    def is_loaded(self, block: int) -> bool:
        return block in self._loaded

    @property
    def loaded(self) -> int:
        """How many blocks are in memory."""
        return len(self._loaded)

    def set_loaded(self, block: int) -> None:
        """The block's bytes are in its slot."""
        self._loaded.add(block)
        self._free_unclaimed(block)

    def expire(self) -> None:
        """Some columns were exchanged for others: what is loaded must be loaded again, in part."""
        self._stale |= self._loaded
        self._loaded = set()

    def forget(self, block: int) -> None:
        """The block could not be loaded: its slot is free, and what it holds is nothing."""
        slot = self._slot_of.pop(block)
        self._claims[slot] = 0
        self._free[slot] = None

    def release(self, position: int) -> bool:
        """Let go of the claims whose last position is below `position`; True if a slot came free."""
        before = len(self._free)
        while self._releases and self._releases[0][0] < position:
            block = heapq.heappop(self._releases)[1]
            slot = self._slot_of.get(block)
            if slot is not None:  # None: forgotten since it was claimed
                self._claims[slot] -= 1
                self._free_unclaimed(block)
        return len(self._free) > before

    def release_all(self) -> None:
        """Let go of every claim. A slot that is still being filled stays out of use until it is loaded."""
        self._releases = []
        for block, slot in self._slot_of.items():
            self._claims[slot] = 0
            self._free_unclaimed(block)

    def _free_unclaimed(self, block: int) -> None:
        slot = self._slot_of[block]
        if not self._claims[slot] and block in self._loaded and slot not in self._free:
            self._free[slot] = block
