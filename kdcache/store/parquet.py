"""Shards as Parquet: one fixed-size binary column a tensor, uncompressed blocks lying raw in the file.

Row groups are blocks. With dictionaries and statistics off and a data page as large as the row group, an uncompressed
column chunk is one page, so that block b of a column is the last `rows × width` bytes of its chunk: read by position,
with no Parquet library in the loop.
"""

from __future__ import annotations

import json
import struct
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from kdcache.arrays import Array
from kdcache.errors import StoreDamaged
from kdcache.store.guard import parse_canonical, safe

__all__ = ["SUFFIX", "Shard", "encode"]

SUFFIX = ".parquet"
_CODEC = {"none": "NONE", "lz4": "LZ4", "zstd": "ZSTD"}
_FOOTER_LIMIT = 64 << 20
_PAGE_HEADER_LIMIT = 4096
_PACKED_HEADER_LIMIT = 128  # too little for a second page that unpacks to much


def encode(
    columns: Mapping[str, NDArray[Any]], schema: Mapping[str, Array], block_rows: int, compression: str, header: bytes
) -> memoryview:
    """The bytes of one shard; a pure function of its arguments (and of pyarrow's version, which is in the footer)."""
    table = pa.Table.from_arrays(
        [_arrow(columns[name], array) for name, array in schema.items()], schema=_schema(schema, header)
    )
    sink = pa.BufferOutputStream()
    with pq.ParquetWriter(
        sink,
        table.schema,
        use_dictionary=False,
        write_statistics=False,
        compression=_CODEC[compression],
        compression_level=1 if compression == "zstd" else None,
        column_encoding=dict.fromkeys(schema, "PLAIN"),
        data_page_size=1 << 30,
        max_rows_per_page=1 << 30,
    ) as writer:
        writer.write_table(table, row_group_size=block_rows)
    return memoryview(sink.getvalue())


def _native(array: Array) -> bool:
    """Scalars that Parquet has a type for keep it, so that `id` and `label` are numbers to every tool."""
    return array.shape == () and array.dtype in ("int32", "int64", "float32", "float64")


def _schema(schema: Mapping[str, Array], header: bytes) -> pa.Schema:
    return pa.schema(
        [
            pa.field(
                name,
                pa.from_numpy_dtype(array.numpy) if _native(array) else pa.binary(array.width),
                nullable=False,
                metadata={"dtype": array.dtype, "shape": json.dumps(list(array.shape))},
            )
            for name, array in schema.items()
        ],
        metadata={"kdcache": header},
    )


def _arrow(values: NDArray[Any], array: Array) -> pa.Array:
    if _native(array):
        return pa.array(values)
    return pa.FixedSizeBinaryArray.from_buffers(pa.binary(array.width), len(values), [None, pa.py_buffer(values)])


class Shard:
    """An open Parquet shard whose layout was compared with the plan."""

    def __init__(self, path: Path, schema: Mapping[str, Array], rows: int, block_rows: int, compression: str) -> None:
        self.path, self._schema, self._rows, self._block_rows = path, schema, rows, block_rows
        self._compressed = compression != "none"
        self._lock = threading.Lock()
        try:
            size = _check_footer_length(path)
            self._file = pq.ParquetFile(
                path,
                memory_map=False,
                pre_buffer=False,
                thrift_string_size_limit=_FOOTER_LIMIT,
                thrift_container_size_limit=max(64, 2 * len(schema) + 2, -(-rows // block_rows) + 1),
                arrow_extensions_enabled=False,
            )
            metadata = self._file.metadata
            found = self._file.schema_arrow
            header = metadata.metadata[b"kdcache"]
            wanted = _schema(schema, header)
            if not found.equals(wanted) or [f.metadata for f in found] != [f.metadata for f in wanted]:
                raise StoreDamaged(
                    f"its columns are {found.names}, the plan has {list(schema)} (or their types differ)"
                )
            sizes = [metadata.row_group(b).num_rows for b in range(metadata.num_row_groups)]
            expected = [min(block_rows, rows - start) for start in range(0, rows, block_rows)]
            if sizes != expected:
                raise StoreDamaged(f"its blocks have {sizes[:4]}… rows, the plan has {expected[:4]}…")
            self._extents = {
                (name, b): self._find(metadata.row_group(b).column(i), expected[b] * array.width, size)
                for b in range(len(expected))
                for i, (name, array) in enumerate(schema.items())
            }
        except (StoreDamaged, FileNotFoundError):
            raise
        except Exception as error:  # a damaged footer makes pyarrow raise whatever it likes
            raise StoreDamaged(f"not a readable Parquet shard: {safe(error)}") from error
        self.header: dict[str, Any] = parse_canonical(header, str(path))

    def _find(self, chunk: Any, size: int, file_size: int) -> tuple[int, int] | None:
        """Where a block lies raw in the file; None where it is compressed.

        Not asked of pyarrow: `chunk.compression` aborts the process where a damaged footer names no known codec.
        """
        end = chunk.data_page_offset + chunk.total_compressed_size
        if not 4 <= chunk.data_page_offset < end <= file_size or chunk.has_dictionary_page:
            raise StoreDamaged(f"column {safe(chunk.path_in_schema)} does not lie in the file, or has a dictionary")
        if chunk.total_uncompressed_size > size + _PAGE_HEADER_LIMIT:
            raise StoreDamaged(
                f"column {safe(chunk.path_in_schema)} declares {chunk.total_uncompressed_size} bytes for {size}"
            )
        if self._compressed:
            return None
        head = chunk.total_compressed_size - size
        if not 0 < head < _PAGE_HEADER_LIMIT:
            raise StoreDamaged(f"column {safe(chunk.path_in_schema)} does not lie raw in one page")
        return end - size, size

    def extent(self, column: str, block: int) -> tuple[int, int] | None:
        """Offset and length of a block's raw bytes in the file, or None where they must be decoded."""
        return self._extents[column, block]

    def read(self, column: str, block: int) -> NDArray[np.uint8]:
        """A block's decoded bytes: uint8 [rows × width]."""
        array = self._schema[column]
        try:
            self._check_page(column, block)
            with self._lock:  # a ParquetFile is not for two threads at once
                chunk = self._file.read_row_group(block, columns=[column], use_threads=False).column(0)
            (part,) = chunk.chunks
            start = part.offset * array.width
            rows = min(self._block_rows, self._rows - block * self._block_rows)
            if len(part) != rows or part.null_count:
                raise StoreDamaged(f"block {block}, column {column}: {len(part)} rows, expected {rows}")
            return np.frombuffer(part.buffers()[1], np.uint8)[start : start + rows * array.width]
        except Exception as error:
            place = f"{self.path}: block {block}, column {column}"
            raise StoreDamaged(f"{place} cannot be decoded: {safe(error)}; restore the shard") from error

    def _check_page(self, column: str, block: int) -> None:
        """Refuse a page that would be unpacked to more than its block takes: a few bytes can become gigabytes."""
        chunk = self._file.metadata.row_group(block).column(list(self._schema).index(column))
        with self.path.open("rb") as file:
            file.seek(chunk.data_page_offset)
            kind, unpacked, packed = _page_header(file.read(32))
        size = self._schema[column].width * min(self._block_rows, self._rows - block * self._block_rows)
        if kind != 0 or unpacked != size or not 0 < chunk.total_compressed_size - packed < _PACKED_HEADER_LIMIT:
            raise StoreDamaged(f"a page of kind {kind} with {unpacked} bytes, expected one data page of {size}")

    def close(self) -> None:
        """Let go of the file."""
        self._file.close()


def _page_header(data: bytes) -> list[int]:
    """Page type, size unpacked and size packed: the first three fields, i32 each, of Thrift's compact PageHeader."""
    numbers, at = [], 0
    for _ in range(3):
        if data[at] != 0x15:  # the next field, an i32
            raise StoreDamaged("its page header is none that a writer of this format makes")
        number = shift = 0
        while True:
            at += 1
            number |= (data[at] & 0x7F) << shift
            shift += 7
            if data[at] < 0x80:
                break
        numbers.append((number >> 1) ^ -(number & 1))
        at += 1
    return numbers


def _check_footer_length(path: Path) -> int:
    """The size of a file whose end is that of a Parquet file with a footer of a bearable length."""
    with path.open("rb") as file:
        size = file.seek(0, 2)
        if size < 12:
            raise StoreDamaged(f"{size} bytes are no Parquet file")
        file.seek(-8, 2)
        length, magic = struct.unpack("<I4s", file.read(8))
    if magic != b"PAR1" or length > min(size - 12, _FOOTER_LIMIT):
        raise StoreDamaged("its end is not that of a Parquet file; it is truncated or damaged")
    return size
