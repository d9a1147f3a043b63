"""The batches of a run of positions, gathered from the pool: one index_select per column, nothing per sample."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kdcache.codecs import Targets
from kdcache.errors import StoreDamaged
from kdcache.loader.layout import Layout
from kdcache.loader.order import Int64s, Order
from kdcache.loader.pool import BlockPool

__all__ = ["Batch", "batches"]

Batch = dict[str, Targets]

_WINDOW_ROWS = 1 << 14  # rows of a rank whose places are worked out at once
_GATHER_BYTES = 1 << 22  # what one gather takes at most, unless a batch is larger: narrow fields, several batches
_ORDER_ROWS = 1 << 16  # positions whose store rows are worked out at once


def batches(
    pool: BlockPool,
    layout: Layout,
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
    gather = _Gather(pool, layout)
    share = batch_size // world_size
    window = max(1, _WINDOW_ROWS // share) * batch_size
    while start < stop:
        until = min(pool.reach(start), start + window, stop)
        until -= (until - start) % batch_size
        if until > start:
            here = gather.places(*rows.take(start + rank, until, world_size), until)
            for batch in gather.window(here, share):
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
            here = gather.places(*rows.take(first, end, world_size), end)
            pieces.append({name: gather.columns(name, here) for name in layout.fields})
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


class _Here(NamedTuple):
    """Where rows lie in the pool, and for each view where their partners do: int64 [B] each."""

    own: Tensor
    partners: tuple[Tensor, ...]

    def cut(self, first: int, last: int) -> _Here:
        return _Here(self.own[first:last], tuple(places[first:last] for places in self.partners))


class _Gather:
    """From places in the pool to decoded fields."""

    def __init__(self, pool: BlockPool, layout: Layout) -> None:
        self._pool, self._layout = pool, layout

    def places(self, rows: Int64s, blocks: NDArray[np.int32], stop: int) -> _Here:
        """Places of rows whose positions lie below `stop`, once their blocks are loaded."""
        self._pool.require(stop)
        own = self._pool.places(rows, blocks)
        if not self._layout.partner:
            return _Here(own, ())
        low, high = self._pool.room(rows, blocks)
        partners = []
        for column in self._layout.partner:
            distance = self._pool.gather(column, own).view(torch.int32)[:, 0].long()
            if ((distance < low) | (distance > high)).any():
                row = int(rows[int(((distance < low) | (distance > high)).nonzero()[0])])
                raise StoreDamaged(
                    f"{self._layout.path}: row {row}: the partner that its view names is not in its block; restore the "
                    "store from a good copy"
                )
            partners.append(own + distance)
        return _Here(own, tuple(partners))

    def columns(self, name: str, here: _Here) -> list[list[Tensor]]:
        """The bytes of each column of a field, view by view."""
        field = self._layout.fields[name]
        places = here.partners if field.partners else (here.own,) * len(field.columns)
        return [
            [self._pool.gather(column, at) for column in columns]
            for columns, at in zip(field.columns, places, strict=True)
        ]

    def window(self, here: _Here, share: int) -> Iterator[Batch]:
        """Batches of `share` rows each; a field is gathered and decoded for as many at once as _GATHER_BYTES holds.

        Where a batch holds several views, its rows come once for each of them, and each batch is gathered by itself.
        """
        fields, several = self._layout.fields, self._layout.views > 1
        spans = {
            name: 1 if several else max(1, _GATHER_BYTES // (field.decoder.width * share))
            for name, field in fields.items()
        }
        at_once: Batch = {}
        for number in range(len(here.own) // share):
            batch: Batch = {}
            for name, span in spans.items():
                ahead = number % span
                if not ahead:
                    some = here.cut(number * share, (number + span) * share)
                    at_once[name] = self._decoded(name, [self.columns(name, some)])
                batch[name] = at_once[name] if several else at_once[name][ahead * share : (ahead + 1) * share]
            yield batch

    def joined(self, pieces: Sequence[Mapping[str, list[list[Tensor]]]]) -> Batch:
        """One batch of pieces that follow each other."""
        return {name: self._decoded(name, [piece[name] for piece in pieces]) for name in self._layout.fields}

    def _decoded(self, name: str, pieces: Sequence[list[list[Tensor]]]) -> Targets:
        """A field of pieces that follow each other, all rows of the first view first."""
        by_view = [part for of_view in zip(*pieces, strict=True) for part in of_view]
        columns = by_view[0] if len(by_view) == 1 else [torch.cat(parts) for parts in zip(*by_view, strict=True)]
        return self._layout.fields[name].decoder(columns)
