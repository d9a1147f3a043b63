"""How the golden stores were made: `python tests/golden/make.py`. They are never made again.

Finished stores of format version 1 that every later version must read, as Parquet and as HDF5 with the same content.
The first pair: 45 rows in blocks of 16, in units of 32 (Parquet) or one unit (HDF5, whose files are large when small),
with dense, topk and lowrank columns and the tables of lowrank. The second, in `second/`: 16 rows with quant, sampled
and threshold columns, one of them of two positions a row. The third, in `third/`: 16 rows with topk columns of packed
indices, one of them in uint8 with a mass and one of two positions a row with an anchor, and lowrank with a curve; as
Parquet alone, for what an HDF5 file holds the others say. Makes what is not there; refuses to overwrite.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from kdcache.arrays import Array
from kdcache.codecs import CODECS
from kdcache.fingerprint import sha256
from kdcache.store import Plan, StoredField, StoreWriter, open_store, plain_field

HERE = Path(__file__).parent
ROWS, CLASSES = 45, 10
LOGITS, POSITIONS, MAP = Array("float32", (CLASSES,)), Array("float32", (2, CLASSES)), Array("float32", (2, 3, 3))
FIRST = {
    "dense": (LOGITS, "dense", {"dtype": "bfloat16"}),
    "sparse": (LOGITS, "topk", {"k": 3}),
    "packed": (LOGITS, "lowrank", {"bytes": 6}),
}
SECOND = {
    "draws": (LOGITS, "sampled", {"draws": 9, "seed": 5}),
    "map": (MAP, "quant", {"bits": 4}),
    "marks": (LOGITS, "threshold", {"k": 9, "dtype": "float16"}),
    "rows": (LOGITS, "quant", {"bits": 8, "dtype": "float32"}),
    "tokens": (POSITIONS, "threshold", {"k": 10, "temperature": 2.0, "seed": 5}),
}
THIRD = {
    "codes": (LOGITS, "topk", {"k": 5, "dtype": "uint8", "mass": 0.97}),
    "curved": (LOGITS, "lowrank", {"bytes": 6}),
    "tokens": (POSITIONS, "topk", {"k": 3, "anchor": 16.0}),
}
BOTH = ("parquet", "hdf5")
# folder: fields, rows, facts of unit 0, containers
SETS = {
    ".": (FIRST, ROWS, {"fidelity": {"packed": 0.5}}, BOTH),
    "second": (SECOND, 16, {}, BOTH),
    "third": (THIRD, 16, {}, ("parquet",)),
}


def teacher_values(array: Array, rows: int = ROWS) -> torch.Tensor:
    """float32 [rows, *shape]: small exact fractions, from integer arithmetic alone."""
    places = np.arange(rows * array.size).reshape(rows, *array.shape)
    return torch.from_numpy(((places * 7919 % 1021 - 510) / 64).astype(np.float32))


def ids(rows: int) -> np.ndarray[Any, Any]:
    return np.arange(rows, dtype=np.int64) * 3


def main() -> None:
    missing = [folder for folder in SETS if not (HERE / folder / "expected.json").exists()]
    if not missing:
        sys.exit(f"{HERE}: the golden stores are there; a new format version gets new ones beside them")
    for folder in missing:
        make(HERE / folder, *SETS[folder])


def make(
    folder: Path, fields: Mapping[str, Any], rows: int, facts: dict[str, Any], containers: tuple[str, ...]
) -> None:
    stored, tables, columns = [], {}, {}
    for name, (array, codec_name, wanted) in fields.items():
        codec = CODECS[codec_name]
        configuration = codec.configure(wanted, array)
        stored.append(StoredField(name, array, codec_name, configuration, codec.columns(array, configuration)))
        values = teacher_values(array, rows)
        fitted = codec.fit(teacher_values(array, max(rows, 32)), configuration)
        if fitted:
            tables[name] = fitted
        keys = torch.from_numpy(ids(rows))
        if len(array.shape) == 2:
            keys = keys[:, None] * array.shape[0] + torch.arange(array.shape[0])
        held = {k: torch.from_numpy(v) for k, v in fitted.items()}
        for suffix, column in codec.encode(values, configuration, held, keys).items():
            column = column.view(torch.uint16) if column.dtype == torch.bfloat16 else column
            columns[stored[-1].column(suffix)] = column.numpy()
    columns["id"] = ids(rows)
    columns["label"] = np.arange(rows, dtype=np.int64) % (CLASSES + 1) - 1
    columns["input"] = (np.arange(rows * 12) * 37 % 251).astype(np.uint8).reshape(rows, 1, 3, 4)
    plan = Plan(
        rows=rows,
        source={"name": "golden", "fingerprint": "0123456789abcdef" * 4, "classes": CLASSES,
                "class_names": [*"abcdefgh", "naïve", "日本"]},
        order={"kind": "shuffled", "seed": 5},
        unit_rows=32,
        block_rows=16,
        batch_rows=8,
        container={"format": "parquet", "compression": "none"},
        fields=(plain_field("id", Array("int64")), plain_field("input", Array("uint8", (1, 3, 4))),
                plain_field("label", Array("int64")), *stored),
        input_statistics={"mean": [125.0], "std": [72.5]},
        teacher={"model": "golden:teacher", "args": {}},
    )  # fmt: skip
    hdf5 = dataclasses.replace(plan, unit_rows=48, container={"format": "hdf5", "compression": "none"})
    for planned in (plan, hdf5)[: len(containers)]:
        writer = StoreWriter(folder / planned.container["format"], planned, tables)
        for unit in writer.work():
            order = planned.permutation()[slice(*planned.unit_range(unit))]
            writer.write(unit, {name: np.ascontiguousarray(columns[name][order]) for name in planned.columns},
                         facts if unit == 0 else None)  # fmt: skip
        writer.finish()
        (writer.path / "README.md").unlink()
    expected: dict[str, Any] = {}
    for name in containers:
        with open_store(folder / name) as store:
            expected[name] = {"digest": store.digest, "plan": store.plan.digest, "alignment": store.plan.alignment}
            expected["columns"] = {c: sha256([store.read_column(c).tobytes()]) for c in store.columns}
            expected["first"] = {c: store.read_column(c, 0, 2).tolist() for c in store.columns}
    (folder / "expected.json").write_text(json.dumps(expected, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
