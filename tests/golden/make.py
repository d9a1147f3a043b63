"""How the golden stores were made: `python tests/golden/make.py`. They are never made again.

Two finished stores of format version 1 with the same content, that every later version must read: 45 rows in blocks of
16, in units of 32 (Parquet) or one unit (HDF5, whose files are large when small), with dense, topk and lowrank columns
and the tables of lowrank. Refuses to overwrite.
"""

from __future__ import annotations

import dataclasses
import json
import sys
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
LOGITS = Array("float32", (CLASSES,))
FIELDS = {
    "dense": ("dense", {"dtype": "bfloat16"}),
    "sparse": ("topk", {"k": 3}),
    "packed": ("lowrank", {"bytes": 6}),
}


def teacher_logits() -> torch.Tensor:
    """float32 [45, 10]: small exact fractions, from integer arithmetic alone."""
    places = np.arange(ROWS * CLASSES).reshape(ROWS, CLASSES)
    return torch.from_numpy(((places * 7919 % 1021 - 510) / 64).astype(np.float32))


def main() -> None:
    if any((HERE / name).exists() for name in ("parquet", "hdf5", "expected.json")):
        sys.exit(f"{HERE}: the golden stores are there; a new format version gets new ones beside them")
    stored, tables, columns = [], {}, {}
    for name, (codec_name, wanted) in FIELDS.items():
        codec = CODECS[codec_name]
        configuration = codec.configure(wanted, LOGITS)
        stored.append(StoredField(name, LOGITS, codec_name, configuration, codec.columns(LOGITS, configuration)))
        fitted = codec.fit(teacher_logits(), configuration)
        if fitted:
            tables[name] = fitted
        encoded = codec.encode(teacher_logits(), configuration, {k: torch.from_numpy(v) for k, v in fitted.items()})
        for suffix, values in encoded.items():
            values = values.view(torch.uint16) if values.dtype == torch.bfloat16 else values
            columns[stored[-1].column(suffix)] = values.numpy()
    columns["id"] = np.arange(ROWS, dtype=np.int64) * 3
    columns["label"] = np.arange(ROWS, dtype=np.int64) % (CLASSES + 1) - 1
    columns["input"] = (np.arange(ROWS * 12) * 37 % 251).astype(np.uint8).reshape(ROWS, 1, 3, 4)
    plan = Plan(
        rows=ROWS,
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
    for planned in (plan, hdf5):
        writer = StoreWriter(HERE / planned.container["format"], planned, tables)
        for unit in writer.work():
            rows = planned.permutation()[slice(*planned.unit_range(unit))]
            writer.write(unit, {name: np.ascontiguousarray(columns[name][rows]) for name in planned.columns},
                         {"fidelity": {"packed": 0.5}} if unit == 0 else None)  # fmt: skip
        writer.finish()
        (writer.path / "README.md").unlink()
    expected: dict[str, Any] = {}
    for name in ("parquet", "hdf5"):
        with open_store(HERE / name) as store:
            expected[name] = {"digest": store.digest, "plan": store.plan.digest, "alignment": store.plan.alignment}
            expected["columns"] = {c: sha256([store.read_column(c).tobytes()]) for c in store.columns}
            expected["first"] = {c: store.read_column(c, 0, 2).tolist() for c in store.columns}
    (HERE / "expected.json").write_text(json.dumps(expected, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
