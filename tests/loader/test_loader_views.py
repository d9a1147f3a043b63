"""The loader on a store with views: what each view's batches hold, what is read for them, and what is refused."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from view_stores import BLOCK, MIXED, PLAIN, ROWS, SPEC, images, network, plan_of, shown, write_store

from kdcache.errors import CheckpointError, StoreDamaged, StoreMismatch, UsageError
from kdcache.loader import StreamingLoader
from kdcache.loader.views import check_replay, verify_views, views_spec
from kdcache.store import StoreReader, convert, open_store, verify
from kdcache.views import replay_batch

VIEWS: list[Any] = [1, 3, "cycle", "all"]
SMALL = 8 * BLOCK * 300  # a pool of a few blocks


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StoreReader]:
    with write_store(tmp_path_factory.mktemp("views") / "store") as reader:
        yield reader


def tensors(batch: Any) -> dict[str, Tensor]:
    return {name: value for name, value in batch.items() if isinstance(value, Tensor)}


def check_batch(batch: Any, views: tuple[int, ...], config: Any = MIXED) -> list[int]:
    """Every value of a batch is that of its rows in its views; gives the rows."""
    found = tensors(batch)
    rows = (found["id"] - 1) // 3
    each = len(rows) // len(views)
    assert torch.equal(found["input"], images()[rows])
    x = replay_batch(found, dataclasses.replace(SPEC, config=config))
    for at, view in enumerate(views):
        here = slice(at * each, (at + 1) * each)
        assert torch.equal(rows[here], rows[:each]), "the same rows for every view"
        expected = shown(config, view)[1][rows[here]]
        assert torch.equal(x[here], expected)
        assert torch.equal(found["logits"][here], network(expected))
    return [int(row) for row in rows[:each]]


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("budget", [1 << 30, SMALL])
@pytest.mark.parametrize("batch_size", [3, 20, 44])
def test_batches_hold_what_their_views_are(store: StoreReader, view: Any, budget: int, batch_size: int) -> None:
    loader = StreamingLoader(store, batch_size, view=view, seed=4, lanes=2, memory_budget=budget)
    plain = StreamingLoader(store, batch_size, seed=4, lanes=2, fields=["input"])
    for epoch in range(4):
        views = {"cycle": (1 + epoch % 3,), "all": (1, 2, 3)}.get(view, (view,))
        assert loader.views_of(epoch) == views
        rows = [row for batch in loader for row in check_batch(batch, views)]
        assert rows == plain.order(epoch)[:].tolist(), "the order is that of the store without views"
    assert loader.epoch == 4
    loader.close()


def test_without_a_view_the_fields_are_those_of_the_images_as_they_are(store: StoreReader) -> None:
    for view in (None, "plain"):
        for batch in StreamingLoader(store, 11, view=view, fields=["input", "logits", "label"]):
            found = tensors(batch)
            assert set(found) == {"id", "input", "logits", "label"}
            assert torch.equal(found["logits"], network(found["input"]))
    batch = next(iter(StreamingLoader(store, 11)))
    assert {"view01.params", "view03.logits", "logits"} <= set(batch)


def test_only_what_is_asked_for_comes(store: StoreReader) -> None:
    batch = next(iter(StreamingLoader(store, 11, view=2, fields=["logits", "label"])))
    assert set(batch) == {"id", "logits", "label"}
    batch = next(iter(StreamingLoader(store, 11, view=2, fields=["input"])))
    assert set(batch) == {"id", "input", "view.params", "view.partner.input", "view.partner.params"}


class Counted:
    """Counts which columns of a store are read."""

    def __init__(self, reader: StoreReader, monkeypatch: pytest.MonkeyPatch) -> None:
        self.read: Counter[str] = Counter()
        true = reader.read_block

        def read_block(block: int, column: str, out: Any) -> None:
            self.read[column] += 1
            true(block, column, out)

        monkeypatch.setattr(reader, "read_block", read_block)


@pytest.mark.parametrize("budget", [1 << 30, SMALL])
def test_an_epoch_reads_its_own_view_and_no_other(
    store: StoreReader, monkeypatch: pytest.MonkeyPatch, budget: int
) -> None:
    counted = Counted(store, monkeypatch)
    loader = StreamingLoader(store, 4, view="cycle", lanes=2, fields=["input", "logits"], memory_budget=budget)
    blocks = len(store.block_starts) - 1
    for epoch in range(4):
        counted.read.clear()
        for _ in loader:
            pass
        own = {f"view{1 + epoch % 3:02d}.{name}" for name in ("params", "partner", "logits")}
        assert {name for name in counted.read if name.startswith("view")} == own
        assert all(counted.read[name] >= blocks for name in own)
        assert counted.read["logits"] == 0
        if budget > SMALL and epoch:
            assert counted.read["input"] == 0, "what does not change stays in memory"
    loader.close()


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("world", [2, 3])
def test_ranks_share_every_global_batch(store: StoreReader, view: Any, world: int) -> None:
    whole = StreamingLoader(store, 6, view=view, lanes=3, remainder="drop")
    ranks = [
        StreamingLoader(store, 6, view=view, lanes=3, remainder="drop", world_size=world, rank=rank)
        for rank in range(world)
    ]
    for epoch in range(2):
        for together, *parts in zip(whole, *ranks, strict=True):
            views = whole.views_of(epoch)
            rows = check_batch(together, views)
            assert [check_batch(part, views) for part in parts] == [rows[rank::world] for rank in range(world)]


@pytest.mark.parametrize("view", VIEWS)
def test_a_run_goes_on_where_it_stood_with_any_batch_size_and_ranks(store: StoreReader, view: Any) -> None:
    def rows_of(loader: StreamingLoader, epochs: int) -> list[tuple[int, int]]:
        found = []
        while loader.epoch < epochs:
            epoch = loader.epoch
            for batch in loader:
                views = loader.views_of(epoch)
                found += [(epoch, row) for row in check_batch(batch, views)]
        return found

    whole = rows_of(StreamingLoader(store, 4, view=view, lanes=2), 3)
    for steps in (0, 3, 11, 17):
        first = StreamingLoader(store, 4, view=view, lanes=2)
        batches = (batch for _ in range(3) for batch in first)
        for _ in range(steps):
            next(batches)
        state = first.state_dict()
        assert len(str(state)) < 1024
        then = StreamingLoader(store, 2, view=view, lanes=2)
        then.load_state_dict(state)
        assert rows_of(then, 3) == whole[4 * steps :]


def test_a_state_of_another_view_is_refused(store: StoreReader) -> None:
    state = StreamingLoader(store, 4, view="cycle").state_dict()
    with pytest.raises(StoreMismatch, match=r"view is 'cycle', this loader's is 2"):
        StreamingLoader(store, 4, view=2).load_state_dict(state)
    with pytest.raises(CheckpointError, match="not the state"):
        StreamingLoader(store, 4).load_state_dict(state)


@pytest.mark.parametrize("view", [0, 4, "some", True, -1])
def test_a_view_that_is_not_there_is_told(store: StoreReader, view: Any) -> None:
    with pytest.raises(UsageError, match="take 1 to 3"):
        StreamingLoader(store, 4, view=view)


def test_several_stores_with_the_same_views(store: StoreReader, tmp_path: Path) -> None:
    double = {f"view{v:02d}.logits": 2 * network(shown(MIXED, v)[1]).numpy() for v in (1, 2, 3)}
    with write_store(tmp_path / "second", forged=double) as second:
        batch = tensors(next(iter(StreamingLoader([store, second], 9, view=2))))
        assert set(batch) == {"id", "input", "label", "logits", "logits@2", "view.params", "view.partner.input",
                              "view.partner.params"}  # fmt: skip
        assert torch.equal(batch["logits@2"], 2 * batch["logits"])
    with write_store(tmp_path / "other", PLAIN) as other, pytest.raises(StoreMismatch, match="not aligned"):
        StreamingLoader([store, other], 9, view=2)


def test_a_store_without_plain_outputs_and_without_mixing(tmp_path: Path) -> None:
    with write_store(tmp_path / "store", PLAIN, "hdf5") as reader:
        assert verify_views(reader) == 3 * 6
        loader = StreamingLoader(reader, 8, view="all")
        rows = sorted(row for batch in loader for row in check_batch(batch, (1, 2, 3), PLAIN))
        assert rows == list(range(ROWS))
        with pytest.raises(UsageError, match="no field 'logits'"):
            StreamingLoader(reader, 8, fields=["logits"])


def test_every_block_replays_and_a_converted_store_too(store: StoreReader, tmp_path: Path) -> None:
    assert verify_views(store) == 3 * 6
    convert(store.path, tmp_path / "h", "hdf5")
    verify(tmp_path / "h", deep=True)
    with open_store(tmp_path / "h") as there:
        assert verify_views(there) == 3 * 6
        assert [there.pixels(unit) for unit in range(3)] == [store.pixels(unit) for unit in range(3)]


def test_images_that_come_out_otherwise_are_told(store: StoreReader, tmp_path: Path) -> None:
    digests = [list(store.pixels(unit)["view02"]) for unit in range(3)]
    digests[1][1] = "0" * 32
    with write_store(tmp_path / "store", pixels={"view02": digests}) as forged:
        check_replay(forged, 2, 0)
        with pytest.raises(StoreMismatch, match=r"unit 1, block 1, view 2: .* [0-9a-f]{32}, .* 0{32}: .*dump it again"):
            check_replay(forged, 2, 3)
        with pytest.raises(StoreMismatch):
            verify_views(forged)


def forged_numbers(name: str, row: int, value: int) -> dict[str, Any]:
    numbers, _ = shown(MIXED, 1)
    changed = numbers["params" if name != "partner" else "partner"].copy()
    if name == "partner":
        changed[row] = value
        return {"view01.partner": changed}
    changed[row, SPEC.place(name)] = value
    return {"view01.params": changed}


@pytest.mark.parametrize(
    ("name", "value"),
    [("crop.height", 0), ("crop.height", 7), ("crop.left", -1), ("flip", 2), ("jitter.brightness", 30000),
     ("mixup.share", 257), ("cutmix.width", 6), ("erase.top", -3)],
)  # fmt: skip
def test_parameters_out_of_range_are_refused(tmp_path: Path, name: str, value: int) -> None:
    with write_store(tmp_path / "store", forged=forged_numbers(name, 21, value)) as forged:
        for view in (1, "all"):
            with pytest.raises(StoreDamaged, match=name.split(".")[0]):
                for _ in StreamingLoader(forged, 4, view=view):
                    pass
        with pytest.raises(StoreDamaged, match=r"unit 1, block 0, view 1"):
            check_replay(forged, 1, 2)


@pytest.mark.parametrize("value", [-6, 3, 2**31 - 1, -(2**31)])
@pytest.mark.parametrize("budget", [1 << 30, SMALL])
def test_a_partner_outside_the_block_is_refused(tmp_path: Path, value: int, budget: int) -> None:
    """Row 21 is the sixth of its block of eight."""
    with write_store(tmp_path / "store", forged=forged_numbers("partner", 21, value)) as forged:
        with pytest.raises(StoreDamaged, match="row 21: the partner"):
            for _ in StreamingLoader(forged, 20, lanes=2, view=1, memory_budget=budget):
                pass
        with pytest.raises(StoreDamaged, match="partner is not in its block"):
            check_replay(forged, 1, 2)


def changed_field(name: str, **changes: Any) -> Any:
    plan = plan_of(MIXED)
    fields = tuple(dataclasses.replace(f, **changes) if f.name == name else f for f in plan.fields)
    return dataclasses.replace(plan, fields=fields)


def test_views_kept_in_different_ways_are_refused(tmp_path: Path) -> None:
    plan = changed_field("view02.params", shared=False)
    with write_store(tmp_path / "one", plan=plan) as reader, pytest.raises(StoreDamaged, match=r"view02\.params"):
        views_spec([reader])
    plan = changed_field("view03.logits", reduction={"pool": 1})
    with write_store(tmp_path / "two", plan=plan) as reader, pytest.raises(StoreDamaged, match="view 3 does not have"):
        StreamingLoader(reader, 4, view=1)


def test_a_plan_with_other_views_than_fields_is_refused(tmp_path: Path) -> None:
    plan = plan_of(MIXED)
    assert plan.views is not None
    more = dataclasses.replace(plan, views={**plan.views, "count": 4})
    with pytest.raises(StoreDamaged, match="4 views, and view 4 has no field"):
        write_store(tmp_path / "one", plan=more)
    odd = dataclasses.replace(plan, views={**plan.views, "flip": 7.5})
    with (
        write_store(tmp_path / "two", plan=odd) as reader,
        pytest.raises(StoreDamaged, match="none that kdcache writes"),
    ):
        StreamingLoader(reader, 4, view=1)


def test_digests_of_images_belong_to_every_view(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="digests of images"):
        write_store(tmp_path / "store", pixels={"view04": [["0" * 32] * 2] * 3})


def test_switching_while_a_block_is_read(store: StoreReader, monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread of an epoch that was left reads its block for the view that is wanted now."""
    import threading

    gate, true = threading.Event(), store.read_block
    held: list[str] = []

    def slow(block: int, column: str, out: Any) -> None:
        if column == "view01.logits" and not gate.is_set():
            held.append(column)
            gate.wait(20)
        true(block, column, out)

    monkeypatch.setattr(store, "read_block", slow)
    loader = StreamingLoader(store, 44, view="cycle", threads=1, timeout=20)
    assert loader._layout().views == 1
    loader._pool.start(loader.order(0).visits())
    while not held:
        pass
    loader.set_epoch(1)
    threading.Timer(0.2, gate.set).start()
    for batch in loader:
        assert sorted(check_batch(batch, (2,))) == list(range(ROWS))
    assert np.array_equal(loader.views_of(1), [2])
    loader.close()
