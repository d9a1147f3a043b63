"""Rows that are sequences: labels [P], targets of every kind [P, ...], sliced and gathered as single samples are."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from kdcache.arrays import Array
from kdcache.codecs import CODECS, QuantisedLogits, SampledLogits, SparseLogits, Targets, flat
from kdcache.loader import StreamingLoader
from kdcache.store import Plan, StoredField, StoreReader, StoreWriter, open_store, plain_field

ROWS, POSITIONS, VOCABULARY = 150, 5, 40
CODEC: dict[str, dict[str, Any]] = {
    "dense": {"dtype": "float16"},
    "quant": {"bits": 8},
    "topk": {"k": 4},
    "sampled": {"draws": 12},
    "threshold": {"k": 6},
}
KIND: dict[str, type] = {
    "dense": Tensor,
    "quant": QuantisedLogits,
    "topk": SparseLogits,
    "sampled": SampledLogits,
    "threshold": SampledLogits,
}


def rows() -> dict[str, Any]:
    """Tokens, segments and labels that follow from the row's number."""
    row = np.arange(ROWS)[:, None]
    return {
        "id": np.arange(ROWS, dtype=np.int64),
        "input": ((row * 7 + np.arange(POSITIONS + 1)) % VOCABULARY).astype(np.int32),
        "segment": np.broadcast_to(np.arange(POSITIONS + 1) // 3, (ROWS, POSITIONS + 1)).astype(np.uint16),
        "label": np.where((row + np.arange(POSITIONS)) % 3, row % VOCABULARY, -1).astype(np.int32),
    }


@pytest.fixture(scope="module", params=sorted(CODEC))
def stored(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, StoreReader, Any]:
    """(codec, store, the targets of all rows decoded at once)."""
    name, data = request.param, rows()
    array, module = Array("float32", (POSITIONS, VOCABULARY)), CODECS[name]
    options = module.configure(CODEC[name], array)
    field = StoredField("logits", array, name, options, module.columns(array, options))
    logits = torch.randn(ROWS, POSITIONS, VOCABULARY, generator=torch.Generator().manual_seed(0)) * 3
    keys = torch.arange(ROWS * POSITIONS).reshape(ROWS, POSITIONS)
    encoded = module.encode(logits, options, {}, keys)
    plain = [plain_field(key, Array(values.dtype.name, values.shape[1:])) for key, values in data.items()]
    source = {"name": "numbers", "fingerprint": "0" * 64, "classes": VOCABULARY, "class_names": []}
    container = {"format": "parquet", "compression": "none"}
    plan = Plan(ROWS, source, {"kind": "source", "seed": 0}, 32, 16, 16, container, (*plain, field))
    columns = data | {field.column(suffix): values.numpy() for suffix, values in encoded.items()}
    writer = StoreWriter(tmp_path_factory.mktemp("sequences") / name, plan)
    for unit in range(plan.units):
        first, last = plan.unit_range(unit)
        writer.write(unit, {key: np.ascontiguousarray(values[first:last]) for key, values in columns.items()})
    writer.finish()
    return name, open_store(writer.path), module.decode(encoded, array, options, {})


def parts(targets: Targets) -> list[Tensor]:
    """The tensors that targets are made of."""
    if isinstance(targets, Tensor):
        return [targets]
    return [value for value in vars(targets).values() if isinstance(value, Tensor)]


@pytest.mark.parametrize("memory", [1 << 30, 1])
def test_batches_hold_whole_rows_of_every_field(stored: tuple[str, StoreReader, Any], memory: int) -> None:
    name, reader, whole = stored
    loader = StreamingLoader(reader, 22, seed=1, lanes=4, memory_budget=memory if memory > 1 else least(reader))
    order, data = loader.order(0), rows()
    for number, batch in enumerate(loader):
        here = torch.from_numpy(order[number * 22 : (number + 1) * 22])
        for key, values in data.items():
            found = batch[key]
            assert isinstance(found, Tensor)
            assert (found.numpy() == values[here]).all(), key
        targets = batch["logits"]
        assert isinstance(targets, KIND[name])
        assert tuple(targets.shape) == (len(here), POSITIONS, VOCABULARY)
        for ours, theirs in zip(parts(targets), parts(whole[here]), strict=True):
            assert torch.equal(ours, theirs)
        for ours, theirs in zip(parts(flat(targets)), parts(flat(whole[here])), strict=True):
            assert torch.equal(ours, theirs)
    assert number == -(-ROWS // 22) - 1


def least(reader: StoreReader) -> int:
    """A budget of so few blocks that one batch has to be gathered piece by piece."""
    return 8 * 16 * sum(array.width for array in reader.columns.values())


def test_tokens_are_shared_by_zipped_stores(stored: tuple[str, StoreReader, Any]) -> None:
    _, reader, _ = stored
    batch = next(iter(StreamingLoader([reader, reader], 8)))
    assert sorted(batch) == ["id", "input", "label", "logits", "logits@2", "segment"]
