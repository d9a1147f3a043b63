"""Stores of format version 1 that every later version must read, to the last bit."""

from __future__ import annotations

import json
from pathlib import Path

import make
import numpy as np
import pytest
import torch

from kdcache.codecs import CODECS, SparseLogits
from kdcache.fingerprint import sha256
from kdcache.store import open_store, verify

HERE = Path(__file__).parent
EXPECTED = json.loads((HERE / "expected.json").read_text())


@pytest.mark.parametrize("name", ["parquet", "hdf5"])
def test_every_byte_is_still_read(name: str) -> None:
    assert verify(HERE / name, deep=True)["strange_files"] == []
    with open_store(HERE / name) as store:
        found = {"digest": store.digest, "plan": store.plan.digest, "alignment": store.plan.alignment}
        assert found == EXPECTED[name]
        assert store.manifest.facts == {"fidelity": {"packed": 0.5}}
        for column, digest in EXPECTED["columns"].items():
            values = store.read_column(column)
            assert sha256([values.tobytes()]) == digest
            assert values[:2].tolist() == EXPECTED["first"][column]


@pytest.mark.parametrize("name", ["parquet", "hdf5"])
def test_decoded_values(name: str) -> None:
    with open_store(HERE / name) as store:
        assert store.read_column("id").tolist() == (store.plan.permutation() * 3).tolist()
        places = np.arange(450).reshape(45, 10)[store.plan.permutation()]
        logits = (places * 7919 % 1021 - 510) / 64
        decoded = {}
        for field in ("dense", "sparse", "packed"):
            stored = store.fields[field]
            decoded[field] = CODECS[stored.codec].decode(
                {suffix: torch.from_numpy(store.read_column(stored.column(suffix))) for suffix in stored.columns},
                stored.array,
                stored.configuration,
                {key: torch.from_numpy(value) for key, value in store.table(field).items()},
            )
    assert np.abs(decoded["dense"].numpy() - logits).max() <= 8 * 2**-8
    centred = logits - logits.mean(1, keepdims=True)
    packed = [
        *(4.81968879699707, 0.7872012853622437, -3.022425651550293, -6.750790119171143, 4.975960731506348),
        *(1.2646602392196655, -2.6067965030670166, -6.711268901824951, 5.508765697479248, 1.7350045442581177),
    ]
    assert decoded["packed"][0].tolist() == pytest.approx(packed, abs=1e-5)
    assert np.abs(decoded["packed"].numpy() - centred).max() < 0.4
    sparse = decoded["sparse"]
    assert isinstance(sparse, SparseLogits)
    assert sparse.tail is not None
    assert (sparse.indices[0].tolist(), sparse.log_p[0].tolist(), sparse.tail[0].tolist(), sparse.num_classes) == (
        [8, 4, 0], [-0.77880859375, -1.1689453125, -1.5595703125], [-8.5078125, 11.1328125, -3.900390625], 10,
    )  # fmt: skip
    log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    assert np.array_equal(sparse.indices.numpy(), np.argsort(-logits, axis=1, kind="stable")[:, :3])
    assert np.abs(sparse.log_p.numpy() - np.take_along_axis(log_p, sparse.indices.numpy(), 1)).max() < 2**-9


def test_they_are_small_and_are_not_made_again() -> None:
    assert (
        sum(p.stat().st_size for name in ("parquet", "hdf5") for p in (HERE / name).rglob("*") if p.is_file()) < 30_000
    )
    with pytest.raises(SystemExit, match=r"the golden stores are there"):
        make.main()
