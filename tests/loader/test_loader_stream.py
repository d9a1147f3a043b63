"""What batches hold and which they are: content, exactly once, ranks, formats, zipped stores, memory, errors."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from loader_stores import CLASSES, WIDTH, logits_of, samples, tensor, write_store
from torch import Tensor
from torch.utils.data import DataLoader

from kdcache.codecs import CODECS, SparseLogits
from kdcache.errors import StoreDamaged, StoreMismatch, UsageError
from kdcache.loader import StreamingLoader
from kdcache.loader.batches import Batch
from kdcache.store import StoreReader

ROWS = 1000


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> StoreReader:
    return write_store(tmp_path_factory.mktemp("store") / "topk", ROWS)


def flat(value: Tensor | SparseLogits) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    assert value.tail is not None
    return [value.indices, value.log_p, value.tail]


def same(a: Mapping[str, Tensor | SparseLogits], b: Mapping[str, Tensor | SparseLogits]) -> bool:
    return a.keys() == b.keys() and all(
        torch.equal(x, y) for name in a for x, y in zip(flat(a[name]), flat(b[name]), strict=True)
    )


def ids(batches: list[Batch]) -> list[int]:
    return [int(i) for batch in batches for i in tensor(batch, "id")]


def interleaved(shares: list[Batch], name: str) -> list[Tensor]:
    """The global batch from the ranks' shares."""
    count = sum(len(tensor(share, "id")) for share in shares)
    whole = []
    for parts in zip(*(flat(share[name]) for share in shares), strict=True):
        rows = parts[0].new_empty(count, *parts[0].shape[1:])
        for rank, part in enumerate(parts):
            rows[rank :: len(shares)] = part
        whole.append(rows)
    return whole


def test_batches_hold_the_rows_of_the_order(store: StoreReader) -> None:
    loader = StreamingLoader(store, 96, seed=3)
    data, logits = samples(ROWS), logits_of(ROWS)
    for epoch in range(2):
        order = loader.order(epoch)
        batches = list(loader)
        assert [len(tensor(batch, "id")) for batch in batches] == [96] * 10 + [40]
        assert len(loader) == 11
        assert loader.epoch == epoch + 1
        for number, batch in enumerate(batches):
            rows = order[number * 96 : (number + 1) * 96]
            for name in ("id", "label", "input"):
                assert torch.equal(tensor(batch, name), torch.from_numpy(data[name][rows]))
            sparse = batch["logits"]
            assert isinstance(sparse, SparseLogits)
            assert torch.equal(sparse.indices, logits[rows].topk(4).indices)
            torch.testing.assert_close(sparse.log_p, logits[rows].log_softmax(1).topk(4).values, atol=1e-2, rtol=1e-3)
        assert sorted(ids(batches)) == data["id"].tolist()


@pytest.mark.parametrize("container", ["parquet", "hdf5"])
@pytest.mark.parametrize("compression", ["none", "compressed"])
def test_formats_give_identical_batches(tmp_path: Path, store: StoreReader, container: str, compression: str) -> None:
    how = {"none": "none", "compressed": "zstd" if container == "parquet" else "deflate"}[compression]
    with write_store(tmp_path / "other", ROWS, container=container, compression=how) as other:
        pairs = zip(StreamingLoader(store, 64), StreamingLoader(other, 64), strict=True)
        assert all(same(a, b) for a, b in pairs)


@pytest.mark.parametrize("codec", ["dense", "bfloat16"])
def test_dense_logits_come_in_the_dtype_of_the_field(tmp_path: Path, codec: str) -> None:
    with write_store(tmp_path / "dense", 100, codec=codec) as dense:
        (batch,) = StreamingLoader(dense, 100, shuffle=False)
    stored = torch.float16 if codec == "dense" else torch.bfloat16
    expected = logits_of(100).to(stored)
    assert torch.equal(tensor(batch, "logits"), expected.float() if codec == "dense" else expected)


@pytest.mark.parametrize("world", [2, 3, 5, 8])
@pytest.mark.parametrize("budget", [1 << 30, 41 * 16 * WIDTH])
def test_ranks_together_are_the_one_process(store: StoreReader, world: int, budget: int) -> None:
    alone = list(StreamingLoader(store, 240, lanes=40))
    ranks = [
        list(StreamingLoader(store, 240, lanes=40, world_size=world, rank=rank, memory_budget=budget))
        for rank in range(world)
    ]
    assert {len(batches) for batches in ranks} == {len(alone)}
    for whole, *shares in zip(alone, *ranks, strict=True):
        for name in whole:
            for a, b in zip(flat(whole[name]), interleaved(shares, name), strict=True):
                assert a.numpy().tobytes() == b.numpy().tobytes()


def test_batch_size_threads_and_memory_do_not_change_the_rows(store: StoreReader) -> None:
    expected = ids(list(StreamingLoader(store, 64, lanes=20)))
    tight = 21 * 16 * WIDTH
    choices: tuple[dict[str, Any], ...] = (
        {"threads": 1},
        {"threads": 4},
        {"memory_budget": tight},
        {"memory_budget": tight * 5 // 4},
    )
    for options in choices:
        for batch_size in (1, 7, 64, 500, 5000):
            loader = StreamingLoader(store, batch_size, lanes=20, **options)
            assert ids(list(loader)) == expected


def test_memory_stays_within_the_budget(store: StoreReader) -> None:
    width = sum(array.width for array in store.columns.values())
    assert width == WIDTH
    budget = 11 * 16 * width + 5
    loader = StreamingLoader(store, 200, lanes=10, memory_budget=budget)
    data = samples(ROWS)
    for epoch in range(2):
        rows = loader.order(epoch)[:]
        batches = list(loader)
        assert np.concatenate([tensor(batch, "input") for batch in batches]).tolist() == data["input"][rows].tolist()
    stats = loader.stats()
    assert stats["pool_blocks"] == 11
    assert stats["pool_bytes"] <= budget < store.rows * width
    assert stats["blocks_read"] <= 2 * (63 + 10)
    with pytest.raises(UsageError, match=f"raise memory_budget to {11 * 16 * width}, or lower lanes"):
        StreamingLoader(store, 200, lanes=10, memory_budget=11 * 16 * width - 1)


def test_resident_blocks_are_read_once(store: StoreReader) -> None:
    loader = StreamingLoader(store, 100)
    for batches in range(3):
        for number, _ in enumerate(loader):
            if number == batches:
                break  # whatever has been loaded by then is not read again
    loader.set_epoch(5)
    assert len(list(loader)) == len(list(loader)) == 10
    assert loader.stats()["blocks_read"] == 63
    assert loader.stats()["bytes_read"] == ROWS * sum(array.width for array in store.columns.values())


def test_only_selected_rows_come(store: StoreReader) -> None:
    mask = np.random.default_rng(0).random(ROWS) < 0.1
    mask[160:320] = False
    loader = StreamingLoader(store, 30, rows=mask, fields=["label"])
    batches = list(loader)
    assert set(batches[0]) == {"id", "label"}
    assert sorted(ids(batches)) == samples(ROWS)["id"][mask].tolist()
    empty_blocks = sum(not mask[start : start + 16].any() for start in range(0, ROWS, 16))
    assert loader.stats()["blocks_read"] == 63 - empty_blocks


def test_only_columns_of_asked_fields_are_read(store: StoreReader) -> None:
    loader = StreamingLoader(store, 100, fields=["label"])
    list(loader)
    assert loader.stats()["bytes_read"] == ROWS * 16


def test_the_remainder_is_dropped_or_shared(store: StoreReader) -> None:
    dropped = StreamingLoader(store, 96, remainder="drop")
    assert len(dropped) == len(list(dropped)) == 10
    assert len(set(ids(list(dropped)))) == 960
    shares = [[len(tensor(b, "id")) for b in StreamingLoader(store, 96, world_size=3, rank=rank)] for rank in range(3)]
    assert [share[-1] for share in shares] == [14, 13, 13]
    with pytest.raises(UsageError, match="last batch has 1 rows, too few for 3 ranks"):
        StreamingLoader(store, 333, world_size=3)
    with pytest.raises(UsageError, match="more than the 1000 rows"):
        StreamingLoader(store, 1001, remainder="drop")


def test_aligned_stores_are_zipped(tmp_path: Path, store: StoreReader) -> None:
    second = write_store(tmp_path / "second", ROWS, codec="dense", logits="second", plain=False, container="hdf5")
    for batch in StreamingLoader([second, store.path], 100, fields=["second", "input", "logits"]):
        rows = (tensor(batch, "id") - 7) // 3
        assert torch.equal(tensor(batch, "second"), logits_of(ROWS).half().float()[rows])
        assert torch.equal(tensor(batch, "input"), torch.from_numpy(samples(ROWS)["input"])[rows])
        assert isinstance(batch["logits"], SparseLogits)
        assert len(batch["logits"]) == len(rows)
    other = write_store(tmp_path / "other", ROWS, block_rows=32)
    with pytest.raises(StoreMismatch, match="not aligned") as caught:
        StreamingLoader([store, other], 100)
    assert store.plan.alignment[:16] in str(caught.value)
    assert other.plan.alignment[:16] in str(caught.value)
    twin = write_store(tmp_path / "twin", ROWS, codec="dense")
    for batch in StreamingLoader([store, twin], 100, fields=["logits", "logits@2"]):
        rows = (tensor(batch, "id") - 7) // 3
        assert isinstance(batch["logits"], SparseLogits)
        assert torch.equal(tensor(batch, "logits@2"), logits_of(ROWS).half().float()[rows])
    with pytest.raises(UsageError, match=r"no field 'logits@3'; did you mean 'logits@2'"):
        StreamingLoader([store, twin], 100, fields=["logits@3"])
    with pytest.raises(UsageError, match=r"device = 'potato': cannot be used here"):
        StreamingLoader(store, 100, device="potato")
    with pytest.raises(UsageError, match=r"fields = 'logits': must be a list of names"):
        StreamingLoader(store, 100, fields="logits")


def test_works_under_a_data_loader(store: StoreReader) -> None:
    expected = list(StreamingLoader(store, 64))
    found = list(DataLoader(StreamingLoader(store, 64), batch_size=None))
    assert len(found) == len(expected)
    assert all(same(a, b) for a, b in zip(found, expected, strict=True))


def test_a_damaged_block_is_an_error_that_names_it(tmp_path: Path) -> None:
    path = write_store(tmp_path / "store", ROWS).path
    shard = sorted((path / "data").iterdir())[3]
    data = bytearray(shard.read_bytes())
    row = samples(ROWS)["input"][200:208].tobytes()  # rows of unit 3
    data[data.index(row) + 5] ^= 4
    shard.chmod(0o644)
    shard.write_bytes(data)
    loader = StreamingLoader(path, 50)
    for _ in range(2):
        with pytest.raises(StoreDamaged, match=f"{shard.name}.*input"):
            list(loader)
    assert len(list(StreamingLoader(path, 50, fields=["label"]))) == 20


def test_values_that_cannot_be_are_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(values: Tensor, *rest: Any) -> dict[str, Tensor]:
        return {
            **encode(values, *rest),
            "indices": torch.full((len(values), 2), CLASSES << 4 | CLASSES, dtype=torch.uint8),
        }

    encode = CODECS["topk"].encode
    monkeypatch.setattr(CODECS["topk"], "encode", wrong)
    path = write_store(tmp_path / "store", 100).path
    with pytest.raises(StoreDamaged, match=r"field 'logits'.*holds class 10 of 10"):
        next(iter(StreamingLoader(path, 50)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fields": ["lables"]}, "did you mean 'label'"),
        ({"batch_size": 0}, "batch_size = 0"),
        ({"remainder": "pad"}, "must be 'keep' or 'drop'"),
        ({"world_size": 3}, "multiple of 3; 63 is"),
        ({"world_size": 2, "rank": 2}, "ranks count from 0"),
        ({"rows": np.ones(3, np.bool_)}, "bool mask"),
        ({"lanes": 0}, "lanes = 0"),
    ],
)
def test_bad_options_are_refused(store: StoreReader, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        StreamingLoader(store, **{"batch_size": 64, **options})


def test_no_store_and_a_closed_loader_are_refused(store: StoreReader) -> None:
    with pytest.raises(UsageError, match="given no store"):
        StreamingLoader([], 64)
    loader = StreamingLoader(store.path, 64)
    loader.close()
    loader.close()
    with pytest.raises(UsageError, match="closed"):
        next(iter(loader))
