"""`StreamingLoader`: batches of tensors from stores, in an order that no batch size, rank or thread changes."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import IterableDataset, get_worker_info

from kdcache.errors import UsageError
from kdcache.loader.batches import Batch, batches
from kdcache.loader.fields import Decoder, named_fields
from kdcache.loader.layout import Layout, lay_out
from kdcache.loader.order import Order
from kdcache.loader.pool import BlockPool
from kdcache.loader.state import check_state, mask_digest, order_identity
from kdcache.loader.views import View, check_view, views_of, views_spec
from kdcache.store import StoreReader, open_store

__all__ = ["StreamingLoader"]


class StreamingLoader(IterableDataset[Batch]):
    """Batches {field: Targets} (tensors, or what sparse codecs give), always with `id`, of one store or aligned ones.

    batch_size is that of the global batch: rank r of world_size takes its rows r, r + world_size, ... A last batch that
    is short is shared the same way, so the ranks' shares differ by at most one row, every row comes exactly once, and
    all ranks take the same number of steps; `remainder="drop"` leaves it out. rows: bool [N], only these rows.
    memory_budget: bytes for the pool of blocks; timeout: seconds that a block may take before StorageError.

    view: of a store with views, 1 to V, "cycle" (epoch e shows view 1 + e mod V and reads no other) or "all" (a batch
    holds all its rows of view 1, then all of view 2, ...: V times `batch_size` rows); None or "plain": the images as
    they are. A view's fields have their plain names (`logits`). With `input`, which is the image as it is stored, comes
    what `kdcache.views.replay_batch` makes of it what the teacher saw: `view.params`, `view.partner.input`,
    `view.partner.params`, `view.delta`, as far as the views have them. The order does not depend on the view.

    The loader stands at one place, (epoch, position), which is the next batch that any iteration hands out. So after
    `break` the next loop goes on, and after the end of an epoch it begins the next one; `set_epoch(e, 0)` rewinds.
    """

    def __init__(
        self,
        stores: StoreReader | str | Path | Sequence[StoreReader | str | Path],
        batch_size: int,
        *,
        seed: int = 0,
        lanes: int = 64,
        shuffle: bool = True,
        fields: Sequence[str] | None = None,
        view: View = None,
        rows: NDArray[np.bool_] | None = None,
        remainder: str = "keep",
        world_size: int = 1,
        rank: int = 0,
        device: str | torch.device = "cpu",
        memory_budget: int = 1 << 30,
        threads: int = 2,
        timeout: float = 60.0,
    ) -> None:
        _check_options(batch_size, remainder, world_size, rank, threads, timeout)
        given = [stores] if isinstance(stores, StoreReader | str | Path) else list(stores)
        if not given:
            raise UsageError("the loader was given no store; give one, or several that are aligned")
        self._opened: list[StoreReader] = []
        try:
            readers = [store if isinstance(store, StoreReader) else self._open(store) for store in given]
            self._batch_size, self._drop, self._world, self._rank = batch_size, remainder == "drop", world_size, rank
            self._path, self._starts = readers[0].path, readers[0].block_starts
            self._seed, self._lanes, self._shuffle = int(seed), lanes, bool(shuffle)
            self._rows = None if rows is None else np.array(rows)
            self._readers, self._fields, self._device = readers, fields, _device(device)
            named_fields(readers)
            self.views = views_spec(readers)
            self.view = check_view(view, self.views, str(self._path))
            self._decoders: dict[str, Decoder] = {}
            self._shown = 0, self._lay_out(0)
            self.epoch, self._position, self._turn = 0, 0, 0
            self._order = 0, self._make_order(0)
            self._total = len(self._order[1])
            self._identity = order_identity(
                readers[0].plan.alignment, self._seed, lanes, self._shuffle, mask_digest(self._rows), self.view
            )
            self._check_shares(0)
            self._pool = BlockPool(
                self._shown[1].columns,
                self._starts,
                np.unique(self._order[1].visits().block),
                lanes=self._order[1].lanes,
                memory_budget=memory_budget,
                threads=threads,
                timeout=timeout,
            )
        except BaseException:
            _close(self._opened)
            raise
        self._finalizer = weakref.finalize(self, _close, [self._pool, *self._opened])  # also at the interpreter's exit

    def _open(self, path: str | Path) -> StoreReader:
        reader = open_store(path)
        self._opened.append(reader)
        return reader

    def __len__(self) -> int:
        """Batches of a whole epoch."""
        return self._total // self._batch_size if self._drop else -(-self._total // self._batch_size)

    def order(self, epoch: int) -> Order:
        """The order of an epoch: `order(epoch)[a:b]` is the store rows of positions a .. b - 1, whatever the rank."""
        if self._order[0] != epoch:
            self._order = epoch, self._make_order(epoch)
        return self._order[1]

    def views_of(self, epoch: int) -> tuple[int, ...]:
        """The views that an epoch's batches hold; (0,) is the images as they are."""
        return views_of(self.view, self.views, epoch)

    def _lay_out(self, epoch: int) -> Layout:
        shown = self.views_of(epoch)
        return lay_out(self._readers, self._fields, shown, self.views, self._device, self._decoders)

    def _layout(self) -> Layout:
        """The layout of the epoch where the loader stands, whose columns the pool then reads."""
        if self.views_of(self._shown[0]) != self.views_of(self.epoch):
            self._shown = self.epoch, self._lay_out(self.epoch)
            self._pool.exchange(self._shown[1].columns)
        return self._shown[1]

    def _make_order(self, epoch: int) -> Order:
        return Order(
            self._starts, seed=self._seed, epoch=epoch, lanes=self._lanes, shuffle=self._shuffle, rows=self._rows
        )

    def set_epoch(self, epoch: int, position: int | None = None) -> None:
        """Stand in `epoch` at `position`; without one, stay where the loader is in that epoch, or begin it."""
        if epoch < 0 or not 0 <= (position or 0) <= self._total:
            raise UsageError(f"epoch {epoch}, position {position}: an epoch has positions 0 to {self._total}")
        if position is None and epoch == self.epoch:
            return
        self._stand(epoch, position or 0)

    def state_dict(self) -> dict[str, Any]:
        """Where the next batch begins; plain JSON, the same on every rank."""
        return {**self._identity, "epoch": self.epoch, "position": self._position}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Stand where the state was saved, with whatever batch size, ranks and threads this loader has.

        StoreMismatch if the state belongs to another order: store, seed, lanes, shuffle or rows.
        """
        self._stand(*check_state(state, self._identity, self._total, str(self._path)))

    def _stand(self, epoch: int, position: int) -> None:
        self._check_shares(position)
        self._turn += 1
        self._pool.stop()
        self.epoch, self._position = epoch, position

    def _check_shares(self, position: int) -> None:
        short = (self._total - position) % self._batch_size
        if self._drop:
            if self._total < self._batch_size:
                raise UsageError(
                    f"{self._path}: batch_size = {self._batch_size} is more than the {self._total} rows, "
                    "and remainder = 'drop' would leave none; lower batch_size"
                )
        elif 0 < short < self._world:
            raise UsageError(
                f"{self._path}: the last batch has {short} rows, too few for {self._world} ranks to take "
                "the same number of steps; use remainder = 'drop' or another batch_size"
            )

    def __iter__(self) -> Iterator[Batch]:
        if get_worker_info() is not None:
            raise UsageError(
                "the loader reads with threads of its own: use DataLoader(loader, batch_size=None) with num_workers=0"
            )
        if not self._finalizer.alive:
            raise UsageError(f"{self._path}: the loader is closed")
        self._turn += 1
        turn, start = self._turn, self._position
        order = self.order(self.epoch)
        stop = self._total - (self._total - start) % self._batch_size if self._drop else self._total
        layout = self._layout()
        self._pool.start(order.visits(start, stop, rank=self._rank, world_size=self._world))
        try:
            for position, batch in batches(
                self._pool,
                layout,
                order,
                start,
                stop,
                self._batch_size,
                self._rank,
                self._world,
            ):
                self._position = position
                yield batch
                if turn != self._turn:
                    raise UsageError(
                        "the loader was moved during this loop by another loop, set_epoch, "
                        "load_state_dict or close; begin a new loop"
                    )
        finally:
            if turn == self._turn:
                self._pool.stop()
        self.epoch, self._position = self.epoch + 1, 0

    def stats(self) -> dict[str, float]:
        """What the pool has done so far and its size: bytes and blocks read, seconds that the consumer waited."""
        pool = self._pool
        return {
            "blocks_read": pool.blocks_read,
            "bytes_read": pool.bytes_read,
            "wait_seconds": pool.wait_seconds,
            "pool_bytes": pool.bytes,
            "pool_blocks": pool.slots,
        }

    def close(self) -> None:
        """Stop the threads, and close the stores that the loader opened itself."""
        self._turn += 1
        self._finalizer()


def _close(parts: Sequence[BlockPool | StoreReader]) -> None:
    for part in parts:
        part.close()


def _device(name: str | torch.device) -> torch.device:
    """The device, if this machine has it."""
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, TypeError) as error:
        raise UsageError(f"device = {name!r}: cannot be used here: {str(error).splitlines()[0]}") from error
    return device


def _check_options(
    batch_size: int,
    remainder: str,
    world_size: int,
    rank: int,
    threads: int,
    timeout: float,
) -> None:
    if batch_size < 1 or threads < 1 or timeout <= 0:
        raise UsageError(f"batch_size = {batch_size}, threads = {threads}, timeout = {timeout}: all must be above 0")
    if remainder not in ("keep", "drop"):
        raise UsageError(f"remainder = {remainder!r}: must be 'keep' or 'drop'")
    if world_size < 1 or not 0 <= rank < world_size:
        raise UsageError(f"rank = {rank} of world_size = {world_size}: ranks count from 0 to world_size - 1")
    if batch_size % world_size:
        raise UsageError(
            f"batch_size = {batch_size} is that of all {world_size} ranks together and must be a multiple "
            f"of {world_size}; {batch_size - batch_size % world_size or world_size} is"
        )
