"""Small real stores on disk for the loader's tests."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from kdcache.arrays import Array
from kdcache.codecs import CODECS, SparseLogits
from kdcache.store import Plan, StoredField, StoreReader, StoreWriter, open_store, plain_field

CLASSES = 10
WIDTH = 38  # bytes per row with topk logits: id 8, label 8, input 6, indices 2, values 8, tail 6


def logits_of(rows: int, seed: int = 0) -> torch.Tensor:
    """Teacher logits, float32 [N, C]."""
    return torch.randn(rows, CLASSES, generator=torch.Generator().manual_seed(seed)) * 3


def tensor(batch: Mapping[str, torch.Tensor | SparseLogits], name: str) -> torch.Tensor:
    """A field of a batch that is no sparse one."""
    value = batch[name]
    assert isinstance(value, torch.Tensor)
    return value


def samples(rows: int) -> dict[str, NDArray[np.generic]]:
    """What a row holds follows from its number: id 3 row + 7, label row modulo C, input [2, 3] of its low bits."""
    row = np.arange(rows, dtype=np.int64)
    return {
        "id": row * 3 + 7,
        "label": row % CLASSES,
        "input": (row[:, None, None] * np.array([[1, 2, 3], [4, 5, 6]])).astype(np.uint8),
    }


def write_store(
    path: Path,
    rows: int,
    *,
    block_rows: int = 16,
    unit_rows: int = 64,
    container: str = "parquet",
    codec: str = "topk",
    logits: str = "logits",
    compression: str = "none",
    fingerprint: str = "0" * 64,
    plain: bool = True,
) -> StoreReader:
    """A store of `samples` (where plain) and one field of logits in `codec`."""
    configuration: dict[str, Mapping[str, object]] = {
        "topk": {"k": 4},
        "dense": {"dtype": "float16"},
        "bfloat16": {"dtype": "bfloat16"},
    }
    array = Array("bfloat16" if codec == "bfloat16" else "float32", (CLASSES,))
    module = CODECS["dense" if codec == "bfloat16" else codec]
    chosen = module.configure(configuration[codec], array)
    name = "dense" if codec == "bfloat16" else codec
    field = StoredField(logits, array, name, chosen, module.columns(array, chosen))
    data = samples(rows)
    fields = [plain_field("id", Array("int64"))]
    if plain:
        fields += [plain_field("label", Array("int64")), plain_field("input", Array("uint8", (2, 3)))]
    plan = Plan(
        rows,
        {"name": "numbers", "fingerprint": fingerprint, "classes": CLASSES, "class_names": []},
        {"kind": "source", "seed": 0},
        unit_rows,
        block_rows,
        block_rows,
        {"format": container, "compression": compression},
        (*fields, field),
    )
    values = logits_of(rows).to(torch.bfloat16 if codec == "bfloat16" else torch.float32)
    encoded = {
        field.column(suffix): (v.view(torch.uint16) if v.dtype == torch.bfloat16 else v).numpy()
        for suffix, v in module.encode(values, chosen, {}).items()
    }
    columns = {f.name: np.ascontiguousarray(data[f.name]) for f in fields} | encoded
    writer = StoreWriter(path, plan)
    for unit in range(plan.units):
        first, last = plan.unit_range(unit)
        writer.write(unit, {k: np.ascontiguousarray(v[first:last]) for k, v in columns.items()})
    writer.finish()
    return open_store(path)
