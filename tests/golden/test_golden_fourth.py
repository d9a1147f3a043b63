"""The fourth golden store: two views of every operation, read and replayed to the last bit."""

from __future__ import annotations

import json
from pathlib import Path

import make
import numpy as np
import torch
import xxhash

from kdcache.fingerprint import sha256
from kdcache.loader import StreamingLoader
from kdcache.loader.views import verify_views, views_spec
from kdcache.store import open_store, verify
from kdcache.views import draw, replay_batch

HERE = Path(__file__).parent / "fourth"
EXPECTED = json.loads((HERE / "expected.json").read_text())


def test_every_byte_is_still_read() -> None:
    assert verify(HERE / "parquet", deep=True)["strange_files"] == []
    with open_store(HERE / "parquet") as store:
        found = {"digest": store.digest, "plan": store.plan.digest, "alignment": store.plan.alignment}
        assert found == EXPECTED["parquet"]
        for column, digest in EXPECTED["columns"].items():
            values = store.read_column(column)
            assert sha256([values.tobytes()]) == digest
            assert values[:2].tolist() == EXPECTED["first"][column]


def test_every_view_is_still_replayed() -> None:
    with open_store(HERE / "parquet") as store:
        spec = views_spec([store])
        assert spec is not None
        assert spec.config == make.VIEWS
        assert verify_views(store) == 4
        for view in (1, 2):
            loader = StreamingLoader(store, 16, view=view, shuffle=False)
            batch = next(iter(loader))
            x = replay_batch(batch, spec)
            loader.close()
            blocks = [xxhash.xxh3_128(block.numpy().data).hexdigest() for block in x.split(make.VIEWED_BLOCK)]
            assert blocks == EXPECTED["pixels"][f"view{view:02d}"] == store.pixels(0)[f"view{view:02d}"]
            assert torch.equal(batch["logits"], make.integer_network(x))
            assert not torch.equal(x, batch["input"])


def test_every_view_is_still_drawn_the_same() -> None:
    """A dump that is gone on with by a later version draws what the earlier one drew."""
    with open_store(HERE / "parquet") as store:
        spec = views_spec([store])
        assert spec is not None
        within = np.arange(16) % make.VIEWED_BLOCK
        for view in (1, 2):
            found = draw(spec, view, make.ids(16), within, np.full(16, make.VIEWED_BLOCK))
            for name, values in found.items():
                assert values.tolist() == store.read_column(f"view{view:02d}.{name}").tolist()


def test_all_operations_were_drawn() -> None:
    with open_store(HERE / "parquet") as store:
        spec = views_spec([store])
        assert spec is not None
        numbers = np.concatenate([store.read_column(f"view0{view}.params") for view in (1, 2)])
        assert (numbers.max(0) > numbers.min(0)).all(), "a number that is always the same tests nothing"
        assert {name.partition(".")[0] for name in spec.layout} == {
            "crop", "shift", "flip", "jitter", "erase", "mixup", "cutmix",
        }  # fmt: skip
