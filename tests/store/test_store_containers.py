"""Both containers, compressed or not, keep one contract."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from store_example import example_plan, unit_columns, values_of, write_example

from kdcache.arrays import DTYPES, Array
from kdcache.errors import StoreDamaged
from kdcache.fingerprint import canonical
from kdcache.store import StoreReader, hdf5, parquet, plain_field, verify
from kdcache.store.digest import block_digest, unit_digests
from kdcache.store.manifest import shard_path

SHAPES: list[tuple[int, ...]] = [(), (1,), (3,), (2, 3), (1, 5, 2)]
arrays = st.builds(Array, st.sampled_from(sorted(DTYPES)), st.lists(st.integers(1, 5), max_size=3).map(tuple))


def shards(store: StoreReader) -> list[Path]:
    return [shard_path(store.path, store.plan, record) for record in store.manifest.units]


class ContainerContract:
    container: Any
    format: str
    compression: str

    def plain(self, path: Path, array: dict[str, Array]) -> dict[str, np.ndarray[Any, Any]]:
        """The columns as the library that everybody has reads them, knowing nothing of kdcache."""
        raise NotImplementedError

    def plan(self, **changes: Any) -> Any:
        return example_plan(self.format, self.compression, **changes)

    @pytest.mark.parametrize("dtype", sorted(DTYPES))
    def test_every_dtype_and_shape_comes_back(self, tmp_path: Path, dtype: str) -> None:
        fields = [plain_field(f"f{i}", Array(dtype, shape)) for i, shape in enumerate(SHAPES)]
        plan = self.plan(rows=21, unit_rows=16, block_rows=4, extra=fields)
        with write_example(tmp_path / "s", plan) as store:
            for unit, shard in enumerate(shards(store)):
                first, last = plan.unit_range(unit)
                plain = self.plain(shard, plan.columns)
                for name, expected in unit_columns(plan, unit).items():
                    for found in (store.read_column(name, first, last), plain[name]):
                        assert found.dtype == plan.columns[name].numpy
                        assert found.shape == expected.shape
                        assert found.tobytes() == expected.tobytes()

    def test_uncompressed_blocks_lie_raw_in_the_file(self, tmp_path: Path) -> None:
        plan = self.plan()
        with write_example(tmp_path / "s", plan) as store:
            for unit, path in enumerate(shards(store)):
                first, last = plan.unit_range(unit)
                columns, raw = unit_columns(plan, unit), path.read_bytes()
                shard = self.container.Shard(path, plan.columns, last - first, plan.block_rows, self.compression)
                for block in range(plan.unit_blocks(unit)):
                    for name in plan.columns:
                        rows = slice(block * plan.block_rows, (block + 1) * plan.block_rows)
                        expected = columns[name][rows].tobytes()
                        assert shard.read(name, block).tobytes() == expected
                        extent = shard.extent(name, block)
                        if self.compression == "none":
                            assert raw[extent[0] : sum(extent)] == expected
                        else:
                            assert extent is None
                shard.close()

    def test_the_same_rows_give_the_same_bytes_a_second_later(self) -> None:
        plan = self.plan()
        columns = unit_columns(plan, 0)

        def encode() -> bytes:
            return bytes(self.container.encode(columns, plan.columns, plan.block_rows, self.compression, b"{}\n"))

        first = encode()
        time.sleep(1.1)
        assert encode() == first

    def test_the_header_holds_the_digests_of_decoded_blocks(self, tmp_path: Path) -> None:
        plan = self.plan()
        with write_example(tmp_path / "s", plan) as store:
            for unit, path in enumerate(shards(store)):
                first, last = plan.unit_range(unit)
                shard = self.container.Shard(path, plan.columns, last - first, plan.block_rows, self.compression)
                digests = unit_digests(unit_columns(plan, unit), plan.block_rows)
                header = {"plan": plan.digest, "unit": unit, "rows": last - first, "digests": digests}
                assert shard.header == header
                assert canonical(header) in path.read_bytes()
                shard.close()

    def test_deep_verification_and_ranges(self, tmp_path: Path) -> None:
        plan = self.plan()
        with write_example(tmp_path / "s", plan) as store:
            whole = {
                name: np.concatenate([unit_columns(plan, unit)[name] for unit in range(plan.units)])
                for name in plan.columns
            }
            random = np.random.default_rng(0)
            edges = [(0, None), (0, 0), (50, 50), (49, 50), (7, 9), (3, 3), (9, 4)]
            for start, stop in [*edges, *random.integers(0, 60, (40, 2)).tolist()]:
                for name, expected in whole.items():
                    assert store.read_column(name, start, stop).tobytes() == expected[start:stop].tobytes()
        facts = verify(tmp_path / "s", deep=True)
        assert facts["strange_files"] == []
        assert facts["rows"] == 50

    def test_a_shard_of_another_cut_is_refused(self, tmp_path: Path) -> None:
        plan = self.plan()
        with write_example(tmp_path / "s", plan) as store:
            path = shards(store)[0]
        for columns, rows, block_rows in (
            (plan.columns, 23, 8),
            (plan.columns, 24, 12 if self.compression != "none" or self.format == "parquet" else 0),
            ({**plan.columns, "more": Array("uint8")}, 24, 8),
            ({**plan.columns, "label": Array("float64")}, 24, 8),
            ({**plan.columns, "input": Array("uint8", (3, 4))}, 24, 8),
        ):
            if block_rows:
                with pytest.raises(StoreDamaged):
                    self.container.Shard(path, columns, rows, block_rows, self.compression)

    @settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.differing_executors])
    @given(
        rows=st.integers(1, 40),
        block_rows=st.integers(1, 9),
        extra=st.lists(arrays, min_size=1, max_size=3),
        seed=st.integers(0, 2**32),
    )
    def test_any_shape_of_shard(
        self, tmp_path_factory: pytest.TempPathFactory, rows: int, block_rows: int, extra: list[Array], seed: int
    ) -> None:
        path = tmp_path_factory.mktemp("any")
        schema = {f"c{i}": array for i, array in enumerate(extra)}
        columns = {name: values_of(array, rows, seed + i) for i, (name, array) in enumerate(schema.items())}
        file = path / "shard"
        file.write_bytes(self.container.encode(columns, schema, block_rows, self.compression, b'{"a":1}\n'))
        shard = self.container.Shard(file, schema, rows, block_rows, self.compression)
        for name in schema:
            for block, start in enumerate(range(0, rows, block_rows)):
                expected = np.ascontiguousarray(columns[name][start : start + block_rows])
                found = shard.read(name, block)
                assert found.tobytes() == expected.tobytes()
                assert block_digest(found) == block_digest(expected.reshape(-1).view(np.uint8))
                if extent := shard.extent(name, block):
                    assert file.read_bytes()[extent[0] : sum(extent)] == expected.tobytes()
        assert shard.header == {"a": 1}
        shard.close()


class ParquetContract(ContainerContract):
    container, format = parquet, "parquet"

    def plain(self, path: Path, arrays: dict[str, Array]) -> dict[str, np.ndarray[Any, Any]]:
        table = pq.read_table(path).combine_chunks()
        found = {}
        for field, column in zip(table.schema, table.columns, strict=True):
            array = Array(field.metadata[b"dtype"].decode(), tuple(json.loads(field.metadata[b"shape"])))
            (part,) = column.chunks
            found[field.name] = np.frombuffer(part.buffers()[1], array.numpy).reshape(len(part), *array.shape)
        return found


class TestParquetNone(ParquetContract):
    compression = "none"


class TestParquetLz4(ParquetContract):
    compression = "lz4"


class TestParquetZstd(ParquetContract):
    compression = "zstd"


class HDF5Contract(ContainerContract):
    container, format = hdf5, "hdf5"

    def plain(self, path: Path, arrays: dict[str, Array]) -> dict[str, np.ndarray[Any, Any]]:
        with h5py.File(path) as file:
            assert all(file[name].attrs["dtype"].decode() == array.dtype for name, array in arrays.items())
            return {name: file[name][...] for name in arrays}


class TestHDF5None(HDF5Contract):
    compression = "none"


class TestHDF5Deflate(HDF5Contract):
    compression = "deflate"


def test_scalars_are_numbers_to_every_parquet_tool(tmp_path: Path) -> None:
    with write_example(tmp_path / "s", example_plan()) as store:
        table = pq.read_table(shards(store)[0])
        assert table["id"].to_pylist() == store.plan.permutation()[:24].tolist()
        assert str(table.schema.field("label").type) == "int64"
        assert not any(field.nullable for field in table.schema)
