"""How the golden stores were made: `python tests/golden/make.py`. They are never made again.

Finished stores of format version 1 that every later version must read, as Parquet and as HDF5 with the same content.
The first pair: 45 rows in blocks of 16, in units of 32 (Parquet) or one unit (HDF5, whose files are large when small),
with dense, topk and lowrank columns and the tables of lowrank. The second, in `second/`: 16 rows with quant, sampled
and threshold columns, one of them of two positions a row. The third, in `third/`: 16 rows with topk columns of packed
indices, one of them in uint8 with a mass and one of two positions a row with an anchor, and lowrank with a curve; as
Parquet alone, for what an HDF5 file holds the others say. The fourth, in `fourth/`, as Parquet: 16 rows in two blocks
with two views of every operation, whose logits are those of an integer network on the replayed images. Makes what is
not there; refuses to overwrite.
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
import xxhash

from kdcache.arrays import Array
from kdcache.codecs import CODECS
from kdcache.config.views import AttackConfig, CropConfig, EraseConfig, JitterConfig, MixConfig, ViewsConfig
from kdcache.fingerprint import sha256
from kdcache.store import Plan, StoredField, StoreWriter, open_store, plain_field
from kdcache.views import ViewsSpec, draw, replay, views_json

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
VIEWS = ViewsConfig(
    count=2, plain=True, seed=5, crop=CropConfig(), shift=1, flip=0.5, erase=EraseConfig(probability=0.5),
    jitter=JitterConfig(brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1), mixup=MixConfig(), cutmix=MixConfig(),
    attack=AttackConfig(epsilon=2, steps=1),
)  # fmt: skip
IMAGE, VIEWED_ROWS, VIEWED_BLOCK = Array("uint8", (3, 5, 4)), 16, 8
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
    missing = [folder for folder in (*SETS, "fourth") if not (HERE / folder / "expected.json").exists()]
    if not missing:
        sys.exit(f"{HERE}: the golden stores are there; a new format version gets new ones beside them")
    for folder in missing:
        if folder == "fourth":
            make_views(HERE / folder)
        else:
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
    expect(folder, containers)


def integer_network(x: torch.Tensor) -> torch.Tensor:
    """float32 [B, CLASSES] of images uint8, exact: whole numbers below 2^24."""
    weight = torch.arange(IMAGE.size * CLASSES).mul(13).remainder(7).sub(3).float().view(CLASSES, -1)
    return x.flatten(1).float() @ weight.T


def make_views(folder: Path) -> None:
    rows, spec = VIEWED_ROWS, ViewsSpec(VIEWS, IMAGE)
    places = np.arange(rows * IMAGE.size).reshape(rows, *IMAGE.shape)
    images = torch.from_numpy((places * 7919 % 1021 % 256).astype(np.uint8))
    columns = {"id": ids(rows), "input": images.numpy(), "logits": integer_network(images).numpy()}
    within = np.arange(rows) % VIEWED_BLOCK
    pixels: dict[str, list[str]] = {}
    plain = [plain_field("id", Array("int64")), plain_field("input", IMAGE)]
    codec, configuration = CODECS["dense"], CODECS["dense"].configure({"dtype": "float32"}, LOGITS)
    names = ["logits"]
    for view in range(1, VIEWS.count + 1):
        name = f"view{view:02d}"
        found = draw(spec, view, ids(rows), within, np.full(rows, VIEWED_BLOCK))
        found["delta"] = (places * 31 % 5 - 2).astype(np.int8)
        partners, params = torch.from_numpy(np.arange(rows) + found["partner"]), torch.from_numpy(found["params"])
        delta = torch.from_numpy(found["delta"])
        x = replay(images, params, spec, partners=images[partners], partner_parameters=params[partners], delta=delta)
        plain += [plain_field(f"{name}.{part}", array, shared=True) for part, array in spec.fields().items()]
        columns |= {f"{name}.{part}": values for part, values in found.items()}
        columns[f"{name}.logits"] = integer_network(x).numpy()
        names.append(f"{name}.logits")
        pixels[name] = [xxhash.xxh3_128(block.numpy().data).hexdigest() for block in x.split(VIEWED_BLOCK)]
    kept = [StoredField(name, LOGITS, "dense", configuration, codec.columns(LOGITS, configuration)) for name in names]
    plan = Plan(
        rows=rows,
        source={"name": "golden", "fingerprint": "0123456789abcdef" * 4, "classes": CLASSES, "class_names": []},
        order={"kind": "source", "seed": 0},
        unit_rows=rows,
        block_rows=VIEWED_BLOCK,
        batch_rows=VIEWED_BLOCK,
        container={"format": "parquet", "compression": "none"},
        fields=(*plain, *kept),
        teacher={"model": "golden:teacher", "args": {}},
        views=views_json(VIEWS, "fedcba9876543210" * 4),
    )
    writer = StoreWriter(folder / "parquet", plan)
    for unit in writer.work():
        writer.write(unit, {name: np.ascontiguousarray(columns[name]) for name in plan.columns}, None, pixels)
    writer.finish()
    (writer.path / "README.md").unlink()
    expect(folder, ("parquet",), {"pixels": pixels})


def expect(folder: Path, containers: tuple[str, ...], more: Mapping[str, Any] | None = None) -> None:
    expected: dict[str, Any] = dict(more or {})
    for name in containers:
        with open_store(folder / name) as store:
            expected[name] = {"digest": store.digest, "plan": store.plan.digest, "alignment": store.plan.alignment}
            expected["columns"] = {c: sha256([store.read_column(c).tobytes()]) for c in store.columns}
            expected["first"] = {c: store.read_column(c, 0, 2).tolist() for c in store.columns}
    (folder / "expected.json").write_text(json.dumps(expected, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
