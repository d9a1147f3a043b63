"""Stores of earlier versions go through the loader of this one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from loader_stores import tensor

from kdcache.codecs import CODECS, QuantisedLogits
from kdcache.loader import StreamingLoader
from kdcache.store import open_store

GOLDEN = Path(__file__).parents[1] / "golden"
STORES = sorted(path.parent for path in GOLDEN.rglob("manifest.json"))


@pytest.mark.parametrize("path", STORES, ids=lambda path: str(path.relative_to(GOLDEN)))
def test_every_field_of_a_golden_store_is_decoded(path: Path) -> None:
    with open_store(path) as store:
        (batch,) = StreamingLoader(store, store.rows, shuffle=False)
        assert tensor(batch, "id").tolist() == store.read_column("id").tolist()
        for name, field in store.fields.items():
            stored = {s: torch.from_numpy(np.array(store.read_column(field.column(s)))) for s in field.columns}
            tables = {key: torch.from_numpy(table) for key, table in store.table(name).items()}
            expected = CODECS[field.codec].decode(stored, field.array, field.configuration, tables)
            found = batch[name]
            if isinstance(found, torch.Tensor) and isinstance(expected, QuantisedLogits):
                assert name != "logits"
                expected = expected.dense()
            assert found.shape == expected.shape
            parts = (
                [(found, expected)]
                if isinstance(found, torch.Tensor)
                else [
                    (getattr(found, part), value)
                    for part, value in vars(expected).items()
                    if isinstance(value, torch.Tensor)
                ]
            )
            assert parts
            assert all(torch.equal(a, b) for a, b in parts if isinstance(a, torch.Tensor))
