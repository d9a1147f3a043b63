"""Shards as HDF5: one dataset a column in the root group, contiguous when uncompressed: blocks lie raw in the file.

A file from a stranger may link out, read other files as raw storage, or load filter plugins; only what kdcache writes
itself is accepted: hard links to plain numeric datasets with the plan's dtype and shape, filters deflate and shuffle.
"""

from __future__ import annotations

import math
import threading
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from kdcache.arrays import Array
from kdcache.errors import StoreDamaged, TrustError
from kdcache.store.guard import parse_canonical, safe

__all__ = ["SUFFIX", "Shard", "encode"]

SUFFIX = ".h5"
_HEADER = "kdcache"
_HEADER_LIMIT = 64 << 20
_FILTERS = {h5py.h5z.FILTER_DEFLATE, h5py.h5z.FILTER_SHUFFLE}


def encode(
    columns: Mapping[str, NDArray[Any]], schema: Mapping[str, Array], block_rows: int, compression: str, header: bytes
) -> memoryview:
    """The bytes of one shard; a pure function of its arguments and of HDF5's version."""
    with h5py.File("shard", "w", driver="core", backing_store=False, libver=("v110", "v110")) as file:
        for name, array in schema.items():
            values = columns[name]
            packed: dict[str, Any] = {}
            if compression == "deflate":
                packed = {"chunks": (min(block_rows, len(values)), *array.shape), "compression": 1, "shuffle": True}
            dataset = file.create_dataset(name, data=values, track_times=False, **packed)
            dataset.attrs["dtype"] = np.bytes_(array.dtype)  # bfloat16 is carried as uint16
        file.create_dataset(_HEADER, data=np.frombuffer(header, np.uint8), track_times=False)
        file.flush()
        return memoryview(file.id.get_file_image())


class Shard:
    """An open HDF5 shard whose layout was compared with the plan."""

    def __init__(self, path: Path, schema: Mapping[str, Array], rows: int, block_rows: int, compression: str) -> None:
        self.path, self._schema, self._rows, self._block_rows = path, schema, rows, block_rows
        self._compressed = compression != "none"
        self._lock = threading.Lock()
        try:
            _forbid_plugins()
            self._file = h5py.File(path, "r")
            self._check(schema, rows)
            self._offsets = {
                name: self._file[name].id.get_offset() if self._file[name].chunks is None else None for name in schema
            }
            header = self._file[_HEADER][...].tobytes()
        except (StoreDamaged, TrustError, FileNotFoundError):
            raise
        except Exception as error:  # a damaged file makes h5py raise whatever it likes
            raise StoreDamaged(f"not a readable HDF5 shard: {safe(error)}") from error
        self.header: dict[str, Any] = parse_canonical(header, str(path))

    def _check(self, schema: Mapping[str, Array], rows: int) -> None:
        root = self._file.id
        names = {name.decode() for name in root}
        if names != {*schema, _HEADER}:
            raise StoreDamaged(f"its datasets are {sorted(names)[:8]}, the plan has {sorted(schema)}")
        for name in names:
            if root.links.get_info(name.encode()).type != h5py.h5l.TYPE_HARD:
                raise TrustError(f"{name} is a soft or external link, which a store may not have")
            if h5py.h5o.get_info(root, name.encode()).type != h5py.h5o.TYPE_DATASET:
                raise TrustError(f"{name} is not a dataset")
            dataset = h5py.h5d.open(root, name.encode())
            layout = dataset.get_create_plist()
            if layout.get_external_count() or layout.get_layout() not in (h5py.h5d.CONTIGUOUS, h5py.h5d.CHUNKED):
                raise TrustError(f"{name} keeps its values in other files, which a store may not do")
            filters = {layout.get_filter(i)[0] for i in range(layout.get_nfilters())}
            if not filters <= _FILTERS:
                raise TrustError(f"{name} needs the filters {sorted(filters)}, allowed are {sorted(_FILTERS)}")
            chunked = layout.get_layout() == h5py.h5d.CHUNKED
            if name == _HEADER:
                if chunked or dataset.dtype != np.uint8 or dataset.rank != 1 or dataset.shape[0] > _HEADER_LIMIT:
                    raise StoreDamaged(f"its header has dtype {dataset.dtype} and shape {dataset.shape}")
            elif chunked != self._compressed:
                kind = "chunked" if chunked else "contiguous"
                raise StoreDamaged(f"column {name} is {kind}, the plan says otherwise")
            elif chunked and layout.get_chunk() != (min(self._block_rows, rows), *schema[name].shape):
                raise StoreDamaged(f"column {name} has chunks of {layout.get_chunk()}, which are not its blocks")
            elif dataset.dtype != schema[name].numpy or dataset.shape != (rows, *schema[name].shape):
                raise StoreDamaged(
                    f"column {name} is {dataset.dtype}{list(dataset.shape)}, the plan has {schema[name]} × {rows} rows"
                )

    def extent(self, column: str, block: int) -> tuple[int, int] | None:
        """Offset and length of a block's raw bytes in the file, or None where they must be decoded."""
        if (offset := self._offsets[column]) is None:
            return None
        start, stop = self._range(block)
        width = self._schema[column].width
        return offset + start * width, (stop - start) * width

    def read(self, column: str, block: int) -> NDArray[np.uint8]:
        """A block's decoded bytes: uint8 [rows × width]."""
        start, stop = self._range(block)
        try:
            dataset = self._file[column]
            if dataset.chunks is None:
                return np.ascontiguousarray(dataset[start:stop]).reshape(-1).view(np.uint8)
            with self._lock:
                return self._unpack(dataset.id, start)[: (stop - start) * self._schema[column].width]
        except Exception as error:
            place = f"{self.path}: block {block}, column {column}"
            raise StoreDamaged(f"{place} cannot be decoded: {safe(error)}; restore the shard") from error

    @staticmethod
    def _unpack(dataset: Any, start: int) -> NDArray[np.uint8]:
        """The bytes of a chunk. HDF5's own deflate filter would unpack a few bytes to gigabytes before it looked."""
        layout = dataset.get_create_plist()
        itemsize, size = dataset.dtype.itemsize, math.prod(layout.get_chunk()) * dataset.dtype.itemsize
        place = (start, *[0] * (dataset.rank - 1))
        if dataset.get_chunk_info_by_coord(place).size > size + (size >> 8) + 64:
            raise StoreDamaged("its chunk is larger packed than unpacked")
        mask, packed = dataset.read_direct_chunk(place)
        filters = [layout.get_filter(i)[0] for i in range(layout.get_nfilters())]
        if mask or filters not in ([], [h5py.h5z.FILTER_DEFLATE], [h5py.h5z.FILTER_SHUFFLE, h5py.h5z.FILTER_DEFLATE]):
            raise StoreDamaged(f"its filters are {filters} with mask {mask}, expected shuffle and deflate")
        data = zlib.decompressobj().decompress(packed, size + 1) if filters else packed
        if len(data) != size:
            raise StoreDamaged(f"its chunk unpacks to {len(data)} bytes or more, expected {size}")
        values = np.frombuffer(data, np.uint8)
        shuffled = len(filters) == 2
        return np.ascontiguousarray(values.reshape(itemsize, -1).T).reshape(-1) if shuffled else values

    def _range(self, block: int) -> tuple[int, int]:
        start = block * self._block_rows
        return start, min(self._rows, start + self._block_rows)

    def close(self) -> None:
        """Let go of the file."""
        self._file.close()


def _forbid_plugins() -> None:
    """Empty the search path for filter plugins, which would be shared libraries of somebody else's choosing."""
    while h5py.h5pl.size():
        h5py.h5pl.remove(0)
