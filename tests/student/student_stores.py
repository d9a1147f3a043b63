"""Real stores for the student's tests: digits, written with the store's own writer and codecs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.datasets import load_digits

from kdcache.arrays import Array
from kdcache.codecs import CODECS
from kdcache.fingerprint import sha256
from kdcache.store import Plan, StoredField, StoreWriter, plain_field

DIGITS_MEAN, DIGITS_STD = 4.884, 6.017


def digits() -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Inputs uint8 [1797, 8, 8] with values 0-16, labels int64 [1797]."""
    table = load_digits()
    return table.images.astype(np.uint8), table.target.astype(np.int64)


def soft_labels(inputs: NDArray[Any], labels: NDArray[np.int64]) -> NDArray[np.float32]:
    """Logits float32 [N, 10] of a ridge regression on the labels: a real, if plain, teacher."""
    x = inputs.reshape(len(inputs), -1).astype(np.float64) / 16
    x = np.concatenate([x, np.ones((len(x), 1))], axis=1)
    known = labels >= 0
    a = x[known]
    weights = np.linalg.solve(a.T @ a + 5.0 * np.eye(a.shape[1]), a.T @ np.eye(10)[labels[known]])
    return (x @ weights * 8).astype(np.float32)


def write_store(
    path: Path,
    inputs: NDArray[Any],
    labels: NDArray[np.int64] | None,
    *,
    logits: NDArray[np.float32] | None = None,
    codec: str = "dense",
    features: NDArray[np.float32] | None = None,
    classes: int | None = 10,
    block_rows: int = 128,
    format: str = "parquet",
    first_id: int = 0,
    statistics: bool = True,
    more: Mapping[str, NDArray[Any]] | None = None,
    **configuration: Any,
) -> Path:
    """A finished store of these rows, in a shuffled order; `more` are fields that are kept as they are."""
    sample = Array(inputs.dtype.name, inputs.shape[1:])
    fields = [plain_field("id", Array("int64")), plain_field("input", sample)]
    encoded: dict[str, NDArray[Any]] = {
        "id": np.arange(first_id, first_id + len(inputs), dtype=np.int64),
        "input": np.ascontiguousarray(inputs),
    }
    if labels is not None:
        fields.append(plain_field("label", Array("int64")))
        encoded["label"] = labels
    for name, values in (more or {}).items():
        fields.append(plain_field(name, Array(values.dtype.name, values.shape[1:])))
        encoded[name] = values
    outputs = (("logits", logits, codec, configuration), ("features.hidden", features, "dense", {}))
    for name, values, kind, options in outputs:
        if values is None:
            continue
        array = Array("float32", values.shape[1:])
        options = CODECS[kind].configure(options, array)
        field = StoredField(name, array, kind, options, CODECS[kind].columns(array, options))
        fields.append(field)
        for suffix, tensor in CODECS[kind].encode(torch.from_numpy(values), options, {}).items():
            encoded[field.column(suffix)] = tensor.numpy()
    mean_std = {"mean": [DIGITS_MEAN], "std": [DIGITS_STD]} if statistics else None
    source = {
        "name": "digits",
        "fingerprint": sha256([inputs.tobytes(), str(first_id).encode()]),
        "classes": classes,
        "class_names": [],
    }
    plan = Plan(
        len(inputs),
        source,
        {"kind": "shuffled", "seed": 0},
        8 * block_rows,
        block_rows,
        block_rows,
        {"format": format, "compression": "none"},
        tuple(fields),
        mean_std,
    )
    writer = StoreWriter(path, plan)
    order = plan.permutation()
    for unit in writer.work():
        first, last = plan.unit_range(unit)
        writer.write(unit, {name: np.ascontiguousarray(values[order[first:last]]) for name, values in encoded.items()})
    assert writer.finish() is not None
    return path
