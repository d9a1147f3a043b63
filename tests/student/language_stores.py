"""Stores of tokens for the student's tests: this project's own README in bytes, and a bigram count as its teacher."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from kdcache.arrays import Array
from kdcache.codecs import CODECS
from kdcache.config import SourceConfig
from kdcache.keyed import keyed_hash
from kdcache.sources import open_source
from kdcache.store import Plan, StoredField, StoreWriter, plain_field

README = Path(__file__).parents[2] / "README.md"
LENGTH, VOCABULARY = 16, 257
TINY = {"width": 16, "layers": 1, "heads": 2}


def tokens(first: int, last: int, masked: float | None = None) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
    """Rows first...last of the README, packed by paragraph, and what a plan keeps of the tokenizer."""
    source = open_source(
        SourceConfig(
            kind="text", files=(README,), tokenizer="bytes", length=LENGTH, document="paragraph", masked=masked
        )
    )
    return source.read(source.ids()[first:last]), source.extra  # type: ignore[attr-defined]


def bigram(rows: dict[str, NDArray[Any]]) -> NDArray[np.float32]:
    """Logits float32 [N, P, V]: the log of how often each byte follows the one before, counted here, plus one half."""
    tokens = rows["input"]
    counts = np.full((VOCABULARY, VOCABULARY), 0.5)
    np.add.at(counts, (tokens[:, :-1].ravel(), tokens[:, 1:].ravel()), 1.0)
    found: NDArray[np.float32] = np.log(counts)[tokens[:, :-1]].astype(np.float32)
    return found


def prompts_hidden(rows: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """The rows with some labels taken away, in some rows all, so that every row has another number of them."""
    draw = keyed_hash("test prompts", np.arange(rows["label"].size)).reshape(rows["label"].shape)
    share = (np.arange(len(draw)) % 5)[:, None] / 4
    hidden = (draw >> np.uint64(11)).astype(np.float64) * 2.0**-53 < share
    return {**rows, "label": np.where(hidden, np.int32(-1), rows["label"])}


def write_tokens(
    path: Path,
    rows: dict[str, NDArray[Any]],
    extra: dict[str, Any],
    *,
    logits: NDArray[np.float32] | None = None,
    codec: str = "dense",
    **configuration: Any,
) -> Path:
    """A finished store of these rows, in a shuffled order."""
    count = len(rows["input"])
    arrays = {name: Array(values.dtype.name, values.shape[1:]) for name, values in rows.items()}
    fields = [plain_field("id", Array("int64")), *(plain_field(name, array) for name, array in arrays.items())]
    encoded: dict[str, NDArray[Any]] = {"id": np.arange(count, dtype=np.int64), **rows}
    if logits is not None:
        array, module = Array("float32", logits.shape[1:]), CODECS[codec]
        options = module.configure(configuration, array)
        field = StoredField("logits", array, codec, options, module.columns(array, options))
        fields.append(field)
        positions = array.shape[0]
        keys = torch.arange(count * positions).reshape(count, positions)
        for suffix, tensor in module.encode(torch.from_numpy(logits), options, {}, keys).items():
            encoded[field.column(suffix)] = tensor.numpy()
    fingerprint = str(int(rows["input"].astype(np.int64).sum())).rjust(64, "0")
    plan = Plan(
        count,
        {"name": "readme", "fingerprint": fingerprint, "classes": VOCABULARY, "class_names": [], **extra},
        {"kind": "shuffled", "seed": 0},
        64,
        16,
        16,
        {"format": "parquet", "compression": "none"},
        tuple(fields),
    )
    writer = StoreWriter(path, plan)
    order = plan.permutation()
    for unit in writer.work():
        first, last = plan.unit_range(unit)
        writer.write(unit, {name: np.ascontiguousarray(values[order[first:last]]) for name, values in encoded.items()})
    assert writer.finish() is not None
    return path
