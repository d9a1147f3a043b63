"""The batches of a run of positions, gathered from the pool: one index_select per column, nothing per sample."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kdcache.codecs import Targets
from kdcache.loader.fields import Decoder
from kdcache.loader.order import Int64s, Order
from kdcache.loader.pool import BlockPool

__all__ = ["Batch", "batches"]

Batch = dict[str, Targets]

_WINDOW_ROWS = 1 << 14  # rows of a rank whose places are worked out at once
_GATHER_BYTES = 1 << 22  # what one gather takes at most, unless a batch is larger: narrow fields, several batches
_ORDER_ROWS = 1 << 16  # positions whose store rows are worked out at once


def batches(
    pool: BlockPool,
    decoders: Mapping[str, Decoder],
    order: Order,
    start: int,
    stop: int,
    batch_size: int,
    rank: int,
    world_size: int,
) -> Iterator[tuple[int, Batch]]:
    """The rank's share of every global batch of positions start .. stop - 1, with the position after that batch.

    Several batches are one window while the blocks of all of them fit in the pool; a batch whose own blocks do not fit
    at once is gathered piece by piece.
    """
    rows = _Rows(order, stop)
    gather = _Gather(pool, decoders)
    share = batch_size // world_size
    window = max(1, _WINDOW_ROWS // share) * batch_size
    while start < stop:
        until = min(pool.reach(start), start + window, stop)
        until -= (until - start) % batch_size
        if until > start:
            places = gather.places(*rows.take(start + rank, until, world_size), until)
            for batch in gather.window(places, share):
                start += batch_size
                pool.release(start)
                yield start, batch
            continue
        until = min(start + batch_size, stop)
        pieces = []
        position = start
        while position < until:
            end = min(pool.reach(position), until)
            first = position + (start + rank - position) % world_size
            places = gather.places(*rows.take(first, end, world_size), end)
            pieces.append({name: gather.columns(name, places) for name in decoders})
            pool.release(end)
            position = end
        start = until
        yield start, gather.joined(pieces)


class _Rows:
    """Store rows and blocks of positions below `stop`, asked for in ascending order and worked out in long runs."""

    def __init__(self, order: Order, stop: int) -> None:
        self._order, self._stop = order, stop
        self._first = self._last = 0

    def take(self, first: int, stop: int, step: int) -> tuple[Int64s, NDArray[np.int32]]:
        """Positions first, first + step, ... below stop."""
        first = min(first, stop)
        if first < self._first or stop > self._last:
            self._first, self._last = first, max(stop, min(first + _ORDER_ROWS, self._stop))
            self._rows, self._blocks = self._order.locate(self._first, self._last)
        here = slice(first - self._first, stop - self._first, step)
        return self._rows[here], self._blocks[here]


class _Gather:
    """From places in the pool to decoded fields."""

    def __init__(self, pool: BlockPool, decoders: Mapping[str, Decoder]) -> None:
        self._pool, self._decoders = pool, decoders
        self._columns: dict[str, range] = {}
        count = 0
        for name, decoder in decoders.items():
            self._columns[name] = range(count, count + len(decoder.columns))
            count += len(decoder.columns)

    def places(self, rows: Int64s, blocks: NDArray[np.int32], stop: int) -> Tensor:
        """Places of rows whose positions lie below `stop`, once their blocks are loaded."""
        self._pool.require(stop)
        return self._pool.places(rows, blocks)

    def columns(self, name: str, places: Tensor) -> list[Tensor]:
        """The bytes of each column of a field."""
        return [self._pool.gather(column, places) for column in self._columns[name]]

    def window(self, places: Tensor, share: int) -> Iterator[Batch]:
        """Batches of `share` rows each; a field is gathered and decoded for as many at once as _GATHER_BYTES holds."""
        spans = {name: max(1, _GATHER_BYTES // (d.width * share)) for name, d in self._decoders.items()}
        at_once: Batch = {}
        for number in range(len(places) // share):
            batch: Batch = {}
            for name, span in spans.items():
                ahead = number % span
                if not ahead:
                    here = places[number * share : (number + span) * share]
                    at_once[name] = self._decoders[name](self.columns(name, here))
                batch[name] = at_once[name][ahead * share : (ahead + 1) * share]
            yield batch

    def joined(self, pieces: Sequence[Mapping[str, Sequence[Tensor]]]) -> Batch:
        """One batch of pieces that follow each other."""
        return {
            name: decoder([torch.cat(parts) for parts in zip(*(piece[name] for piece in pieces), strict=True)])
            for name, decoder in self._decoders.items()
        }
