"""A small store with one column of every kind, for the tests of the store."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from kdcache.arrays import DTYPES, Array
from kdcache.store import Plan, StoredField, StoreReader, StoreWriter, plain_field

__all__ = ["CONTAINERS", "example_plan", "unit_columns", "values_of", "write_example"]

CONTAINERS = [("parquet", "none"), ("parquet", "lz4"), ("parquet", "zstd"), ("hdf5", "none"), ("hdf5", "deflate")]
TABLES = {"soft": {"basis": np.arange(12, dtype=np.float32).reshape(3, 4), "bits": np.array([3, 2, 1], np.uint8)}}


def example_plan(
    container: str = "parquet",
    compression: str = "none",
    *,
    rows: int = 50,
    unit_rows: int = 24,
    block_rows: int = 8,
    extra: Sequence[StoredField] | None = None,
    **changes: Any,
) -> Plan:
    """A plan whose last block and last unit are short: units of 24, 24 and 2 rows, blocks of 8."""
    if extra is None:
        extra = (
            plain_field("input", Array("uint8", (4, 3))),
            plain_field("label", Array("int64")),
            StoredField(
                "logits",
                Array("float32", (10,)),
                "topk",
                {"k": 2, "dtype": "float16"},
                {
                    "indices": Array("uint8", (2,)),
                    "values": Array("float16", (2,)),
                    "tail": Array("float16", (3,)),
                },
            ),
        )
    plan = Plan(
        rows=rows,
        source={"name": "example", "fingerprint": "ab" * 32, "classes": 10, "class_names": []},
        order={"kind": "shuffled", "seed": 0},
        unit_rows=unit_rows,
        block_rows=block_rows,
        batch_rows=min(4, unit_rows),
        container={"format": container, "compression": compression},
        fields=(plain_field("id", Array("int64")), *extra),
    )
    return Plan(**{**{name: getattr(plan, name) for name in plan.__dataclass_fields__}, **changes})


def values_of(array: Array, rows: int, seed: int) -> np.ndarray[Any, Any]:
    """Any bytes at all, NaNs included, half of them zero so that compression has something to do."""
    random = np.random.default_rng(seed)
    data = random.integers(0, 256, rows * array.width, np.uint8)
    data[random.random(len(data)) < 0.5] = 0
    return data.view(DTYPES[array.dtype]).reshape(rows, *array.shape)


def unit_columns(plan: Plan, unit: int) -> dict[str, np.ndarray[Any, Any]]:
    """What a dump would write for a unit: ids in the plan's order, the rest a pure function of the row."""
    first, last = plan.unit_range(unit)
    found = {
        name: np.ascontiguousarray(values_of(array, plan.rows, seed)[first:last])
        for seed, (name, array) in enumerate(plan.columns.items())
    }
    found["id"] = plan.permutation()[first:last].copy()
    return found


def write_example(path: Path, plan: Plan, tables: Mapping[str, Any] | None = None) -> StoreReader:
    """Write every unit and open the store."""
    writer = StoreWriter(path, plan, tables)
    for unit in writer.work():
        writer.write(unit, unit_columns(plan, unit), {"fidelity": {"kl": 0.25}} if unit == 0 else None)
    assert writer.finish() is not None
    return StoreReader(path)
