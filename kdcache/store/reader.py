"""`open_store` and `StoreReader`: blocks of columns, read by position and verified the first time."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Set
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdcache.arrays import Array
from kdcache.errors import StoreDamaged, StoreError, StoreUnfinished, TrustError, UsageError
from kdcache.files import disk_errors, open_regular, read_exactly
from kdcache.store import hdf5, parquet
from kdcache.store.commit import CONTAINERS, committed
from kdcache.store.digest import check_block
from kdcache.store.guard import HEX32
from kdcache.store.manifest import Manifest, read_manifest, shard_path
from kdcache.store.plan import Plan
from kdcache.store.plan_file import read_plan
from kdcache.store.schema import StoredField
from kdcache.store.tables import Table, read_table

__all__ = ["StoreReader", "open_store"]

_OPEN_SHARDS = 64


def open_store(path: str | Path) -> StoreReader:
    """Open a finished store for reading.

    Every shard is looked for and its size compared before anything is read. Raises StoreUnfinished, StoreDamaged,
    StoreMismatch (a newer format), TrustError.
    """
    return StoreReader(Path(path))


def read_head(path: Path) -> tuple[Plan, Manifest | None]:
    """The plan of a store, and its manifest if it is finished."""
    if not path.is_dir():
        raise StoreError(f"{path}: there is no such folder; a store is the folder that `kdcache dump --out` names")
    with disk_errors(path, "read"):
        plan = read_plan(path)
        if plan is None:
            raise StoreError(
                f"{path}: holds no plan.json, so it is not a store; a run's store is its subfolder `store`"
            )
        return plan, read_manifest(path, plan)


class StoreReader:
    """A finished store. `read_block` may be called from several threads at once."""

    def __init__(self, path: Path) -> None:
        plan, manifest = read_head(path)
        if manifest is None:
            done = len(committed(path, range(plan.units)))
            raise StoreUnfinished(
                f"{path}: is unfinished, {done} of {plan.units} units are committed; run the same "
                "`kdcache dump` again to finish it"
            )
        self.path, self.plan, self.manifest = path, plan, manifest
        self.rows = plan.rows
        self.fields: dict[str, StoredField] = {f.name: f for f in plan.fields}
        self.columns: dict[str, Array] = plan.columns
        self.block_starts = plan.block_starts
        self._column_index = {name: i for i, name in enumerate(self.columns)}
        self._verified = np.zeros((len(self.block_starts) - 1, len(self.columns)), np.bool_)
        self._per_unit = plan.unit_rows // plan.block_rows
        self._shards: OrderedDict[int, _OpenShard] = OrderedDict()
        self._lock = threading.Lock()
        self._check_present()

    @property
    def digest(self) -> str:
        """The store's identity: SHA-256 of its manifest."""
        return self.manifest.digest

    def _check_present(self) -> None:
        with disk_errors(self.path / "data", "list"):
            sizes = {entry.name: entry.stat(follow_symlinks=False).st_size for entry in os.scandir(self.path / "data")}
        for record in self.manifest.units:
            path = shard_path(self.path, self.plan, record)
            if (size := sizes.get(path.name)) != record.bytes:
                found = "it is missing" if size is None else f"it has {size} bytes"
                raise StoreDamaged(
                    f"{path}: the manifest has a shard of {record.bytes} bytes, but {found}; "
                    "restore it from a good copy"
                )

    def read_block(self, block: int, column: str, out: NDArray[np.uint8]) -> None:
        """Fill `out` (uint8 [rows of the block × width], C-contiguous) with the raw little-endian bytes of a column.

        The bytes are compared with their digest the first time that this reader reads them.
        """
        unit, within = divmod(block, self._per_unit)
        shard = self._shard(unit)
        try:
            shard.read(column, within, out)
            mark = block, self._column_index[column]
            if not self._verified[mark]:
                check_block(out, shard.digests[column][within], shard.path, within, column)
                self._verified[mark] = True
        finally:
            shard.release()

    def read_column(self, column: str, start: int = 0, stop: int | None = None) -> NDArray[Any]:
        """Rows start…stop of one column: [n, *shape] in the column's numpy dtype. For ids, labels, statistics."""
        if column not in self.columns:
            raise UsageError(f"{self.path}: has no column {column!r}, its columns are {list(self.columns)}")
        array = self.columns[column]
        start, stop, _ = slice(start, stop).indices(self.rows)
        if stop <= start:
            return np.empty((0, *array.shape), array.numpy)
        first, last = np.searchsorted(self.block_starts, [start, stop - 1], side="right") - 1
        base = int(self.block_starts[first])
        values = np.empty((int(self.block_starts[last + 1]) - base, array.width), np.uint8)
        for block in range(int(first), int(last) + 1):
            a, b = self.block_starts[block] - base, self.block_starts[block + 1] - base
            self.read_block(block, column, values[a:b].reshape(-1))
        return values[start - base : stop - base].reshape(-1).view(array.numpy).reshape(-1, *array.shape)

    def table(self, field: str) -> Table:
        """The arrays that a field's codec was fitted with, by name; {} where it needs none."""
        return read_table(self.path, self.plan, field)

    def pixels(self, unit: int) -> dict[str, list[str]]:
        """By view (`view01`) the xxh3_128 of each of the unit's blocks of augmented images; {} without views."""
        shard = self._shard(unit)
        try:
            return {view: list(digests) for view, digests in shard.pixels.items()}
        finally:
            shard.release()

    def _shard(self, unit: int) -> _OpenShard:
        """The open shard of a unit, held until it is released; the least recently used is closed when too many are."""
        with self._lock:
            shard = self._shards.get(unit)
            if shard is None:
                shard = self._shards[unit] = self._open(unit)
                while len(self._shards) > _OPEN_SHARDS:
                    self._shards.popitem(last=False)[1].retire()
            self._shards.move_to_end(unit)
            shard.hold()
            return shard

    def _open(self, unit: int) -> _OpenShard:
        path = shard_path(self.path, self.plan, self.manifest.units[unit])
        with disk_errors(path, "read"):
            return _OpenShard(path, self.plan, unit)

    def close(self) -> None:
        """Let go of every file."""
        with self._lock:
            while self._shards:
                self._shards.popitem()[1].retire()

    def __enter__(self) -> StoreReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class _OpenShard:
    """A shard's descriptor and layout. Closed when it is retired and nobody holds it any more."""

    def __init__(self, path: Path, plan: Plan, unit: int) -> None:
        self.path = path
        first, last = plan.unit_range(unit)
        self._descriptor = open_regular(path)
        self._held, self._retired, self._lock = 0, False, threading.Lock()
        try:
            container = CONTAINERS[plan.container["format"]]
            self._shard: parquet.Shard | hdf5.Shard = container.Shard(
                path, plan.columns, last - first, plan.block_rows, plan.container["compression"]
            )
            self.digests, self.pixels = self._check_header(plan, unit)
        except (StoreDamaged, TrustError) as error:
            os.close(self._descriptor)
            raise type(error)(f"{path}: {error}; restore the shard from a good copy") from error
        except BaseException:
            os.close(self._descriptor)
            raise

    def _check_header(self, plan: Plan, unit: int) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
        """The digests of the columns' blocks, and those of the views' images."""
        header = self._shard.header
        if not isinstance(header, dict) or header.get("plan") != plan.digest or header.get("unit") != unit:
            raise StoreDamaged("it belongs to another store or unit")
        digests = header.get("digests")
        blocks = plan.unit_blocks(unit)
        rows = plan.unit_range(unit)
        pixels = header.get("pixels", {})
        known = {"plan", "unit", "rows", "digests", *(("pixels",) if plan.views else ())}
        if header.keys() != known or header["rows"] != rows[1] - rows[0]:
            raise StoreDamaged(f"its header does not hold {', '.join(sorted(known))}")
        if not _one_a_block(digests, plan.columns.keys(), blocks):
            raise StoreDamaged("its header does not hold one digest for each block and column")
        if not _one_a_block(pixels, set(plan.view_names), blocks):
            raise StoreDamaged("its header does not hold one digest of the images for each block and view")
        assert digests is not None
        return digests, pixels

    def read(self, column: str, block: int, out: NDArray[np.uint8]) -> None:
        if (extent := self._shard.extent(column, block)) is None:
            data = self._shard.read(column, block)
            if data.shape != out.shape:
                raise StoreDamaged(
                    f"{self.path}: block {block}, column {column}: {data.size} bytes, expected {out.size}"
                )
            np.copyto(out, data)
            return
        offset, size = extent
        with disk_errors(self.path, "read"):
            read = read_exactly(self._descriptor, out.data, offset)
        if read != size:
            raise StoreDamaged(
                f"{self.path}: block {block}, column {column}: the file ends after {read} of {size} bytes; "
                "restore it from a good copy"
            )

    def hold(self) -> None:
        with self._lock:
            self._held += 1

    def release(self) -> None:
        with self._lock:
            self._held -= 1
        self._close_if_free()

    def retire(self) -> None:
        with self._lock:
            self._retired = True
        self._close_if_free()

    def _close_if_free(self) -> None:
        with self._lock:
            if self._retired and self._held == 0 and self._descriptor >= 0:
                os.close(self._descriptor)
                self._descriptor = -1
                self._shard.close()


def _one_a_block(digests: Any, names: Set[str], blocks: int) -> bool:
    """Whether it is a table with one digest for each block under each of the names."""
    return (
        isinstance(digests, dict)
        and digests.keys() == names
        and all(isinstance(d, list) and len(d) == blocks for d in digests.values())
        and all(isinstance(digest, str) and HEX32.fullmatch(digest) for d in digests.values() for digest in d)
    )
