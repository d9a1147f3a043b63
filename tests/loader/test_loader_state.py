"""Resume: in order, from any cut, on another world size and batch size, cheaply, and only into the same order."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from loader_stores import tensor, write_store
from numpy.typing import NDArray

from kdcache.errors import CheckpointError, StoreMismatch, UsageError
from kdcache.loader import Order, StreamingLoader
from kdcache.loader.pool import BlockPool, Column
from kdcache.store import StoreReader

ROWS = 700


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> StoreReader:
    return write_store(tmp_path_factory.mktemp("state") / "store", ROWS)


def take(loader: StreamingLoader, batches: int) -> list[int]:
    """Ids of the next batches, over the ends of epochs."""
    found: list[int] = []
    while batches:
        for batch in loader:
            found += [int(i) for i in tensor(batch, "id")]
            batches -= 1
            if not batches:
                break
    return found


def expected_ids(loader: StreamingLoader, epochs: int) -> list[int]:
    return np.concatenate([loader.order(epoch)[:] * 3 + 7 for epoch in range(epochs)]).tolist()  # type: ignore[no-any-return]


@settings(max_examples=12, deadline=None)
@given(st.data())
def test_five_resumes_with_other_batches_and_ranks_go_on_exactly(store: StoreReader, data: st.DataObject) -> None:
    state: dict[str, Any] | None = None
    found: list[int] = []
    for _ in range(6):
        world, share = data.draw(st.sampled_from((1, 2, 4))), data.draw(st.integers(1, 30))
        steps = data.draw(st.integers(0, 12))
        threads, budget = data.draw(st.integers(1, 3)), data.draw(st.sampled_from((1 << 30, 13 * 16 * 8)))
        ranks = []
        for rank in range(world):
            loader = StreamingLoader(
                store,
                world * share,
                lanes=12,
                world_size=world,
                rank=rank,
                threads=threads,
                memory_budget=budget,
                remainder="drop" if world > 1 else "keep",
                fields=["id"],
            )
            if state is not None:
                loader.load_state_dict(json.loads(json.dumps(state)))
            ranks.append(loader)
        for _step in range(steps):
            shares = [take_one(loader) for loader in ranks]
            if None in shares:
                break  # the rest of the epoch is shorter than a global batch: the next session takes it
            found += [share[i] for i in range(len(shares[0] or [])) for share in shares if share is not None]
        states = [loader.state_dict() for loader in ranks]
        assert all(s == states[0] for s in states)
        state = states[0]
        assert len(json.dumps(state)) < 1024
        if state["epoch"]:
            break
    assert found == expected_ids(ranks[0], 2)[: len(found)]


def take_one(loader: StreamingLoader) -> list[int] | None:
    batch = next(iter(loader), None)
    return None if batch is None else [int(i) for i in tensor(batch, "id")]


def test_an_interrupted_run_equals_one_that_was_not_over_epoch_ends(store: StoreReader) -> None:
    whole = take(StreamingLoader(store, 64), 30)
    for cut in (1, 10, 11, 12, 22, 29):
        first = StreamingLoader(store, 64)
        found = take(first, cut)
        second = StreamingLoader(store, 64)
        second.load_state_dict(first.state_dict())
        assert found + take(second, 30 - cut) == whole


def test_the_loader_goes_on_where_it_stands(store: StoreReader) -> None:
    loader = StreamingLoader(store, 100)
    first = take(loader, 2)
    loader.set_epoch(0)
    assert first + take(loader, 5) == expected_ids(loader, 1)
    assert loader.state_dict()["position"] == ROWS
    assert list(loader) == []  # the epoch was taken to its end; this loop only finds that out
    assert (loader.epoch, loader.state_dict()["position"]) == (1, 0)
    loader.set_epoch(0, 0)
    assert take(loader, 2) == first
    loader.set_epoch(1)
    assert take(loader, 7) == expected_ids(loader, 2)[ROWS:]


def test_an_older_loop_notices_that_the_loader_was_moved(store: StoreReader) -> None:
    loader = StreamingLoader(store, 100)
    older = iter(loader)
    next(older)
    newer = iter(loader)
    next(newer)
    with pytest.raises(UsageError, match="moved during this loop"):
        next(older)
    next(newer)
    loader.load_state_dict(loader.state_dict())
    with pytest.raises(UsageError, match="moved during this loop"):
        next(newer)


def test_a_moved_store_is_the_same_and_another_is_refused(tmp_path: Path, store: StoreReader) -> None:
    loader = StreamingLoader(store, 64, rows=np.arange(ROWS) % 2 == 0)
    take(loader, 3)
    state = loader.state_dict()
    shutil.copytree(store.path, tmp_path / "moved")
    moved = StreamingLoader(tmp_path / "moved", 32, rows=np.arange(ROWS) % 2 == 0)
    moved.load_state_dict(state)
    assert take(moved, 4) == take(loader, 2)
    other = write_store(tmp_path / "other", ROWS, fingerprint="1" * 64)
    for stranger, ours, theirs in (
        (StreamingLoader(other, 64, rows=np.arange(ROWS) % 2 == 0), other.plan.alignment, store.plan.alignment),
        (StreamingLoader(store, 64, seed=1, rows=np.arange(ROWS) % 2 == 0), "1", "0"),
        (StreamingLoader(store, 64, lanes=32, rows=np.arange(ROWS) % 2 == 0), "32", "64"),
        (StreamingLoader(store, 64, shuffle=False, rows=np.arange(ROWS) % 2 == 0), "False", "True"),
        (StreamingLoader(store, 64), "None", str(state["rows"])),
    ):
        with pytest.raises(StoreMismatch) as caught:
            stranger.load_state_dict(state)
        assert ours in str(caught.value)
        assert theirs in str(caught.value)


def test_what_is_no_state_is_refused(store: StoreReader) -> None:
    loader = StreamingLoader(store, 64)
    state = loader.state_dict()
    with pytest.raises(StoreMismatch, match="version is 2, this loader's is 1"):
        loader.load_state_dict({**state, "version": 2})
    for wrong in (
        {},
        {**state, "more": 1},
        {**state, "position": ROWS + 1},
        {**state, "epoch": -1},
        {**state, "position": "3"},
        {**state, "epoch": True},
    ):
        with pytest.raises(CheckpointError):
            loader.load_state_dict(wrong)
    assert take(loader, 11) == expected_ids(loader, 1)


def test_a_resume_reads_at_most_a_block_per_lane_of_a_million() -> None:
    class Counting:
        path = Path("counting")

        def read_block(self, block: int, column: str, out: NDArray[np.uint8]) -> None:
            out.view(np.int64)[:] = np.arange(block * 16, block * 16 + 16)

    starts = np.arange(0, 16_000_001, 16)
    order = Order(starts, seed=0, epoch=0)
    pool = BlockPool(
        [Column(Counting(), "id", 8)],
        starts,
        np.arange(10**6),
        lanes=64,
        memory_budget=65 * 16 * 8,
        threads=2,
        timeout=60,
    )
    start = 9_000_000
    pool.start(order.visits(start))
    stop = min(pool.reach(start), start + 64)
    pool.require(stop)
    rows, blocks = order.locate(start, stop)
    assert pool.gather(0, pool.places(rows, blocks)).view(-1).numpy().view(np.int64).tolist() == rows.tolist()
    pool.close()
    assert pool.blocks_read <= 64 + 1  # the one slot beyond the lanes is filled ahead
