"""What is said of memory before there is a store is what the loader says when it opens the store."""

from __future__ import annotations

import re

import numpy as np
import pytest
from student_stores import write_store

from kdcache.config import TrainConfig
from kdcache.errors import UsageError
from kdcache.loader import StreamingLoader
from kdcache.store import StoreReader, open_store
from kdcache.student.memory import check_memory, loader_budgets

WIDTH, BLOCKS, FIELDS = 32768, 10, ("id", "input", "label")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> StoreReader:
    """10 blocks of 8 rows, the last of 2: 0.25 MiB and a little each."""
    rows = 9 * 8 + 2
    inputs = np.zeros((rows, WIDTH), np.uint8)
    return open_store(write_store(tmp_path_factory.mktemp("wide") / "store", inputs, np.zeros(rows, np.int64),
                                  block_rows=8, statistics=False))  # fmt: skip


def opens(store: StoreReader, train: TrainConfig) -> bool:
    try:
        StreamingLoader(store, 8, lanes=train.lanes, fields=FIELDS, memory_budget=loader_budgets(train)[0]).close()
    except UsageError:
        return False
    return True


@pytest.mark.parametrize("stopping", [None, {}])
def test_it_is_refused_where_the_loader_refuses(store: StoreReader, stopping: dict[str, int] | None) -> None:
    seen = set()
    for lanes in (1, 2, 3, 7, 8, 9, 10, 64):
        for memory in (1, 2, 3, 4, 5):
            train = TrainConfig(lanes=lanes, memory_mib=memory, early_stopping=stopping)
            expected = opens(store, train)
            seen.add(expected)
            if expected:
                check_memory(store.plan, FIELDS, train)
                continue
            with pytest.raises(UsageError, match=f"{min(lanes, BLOCKS)} lanes need {min(lanes + 1, BLOCKS)}:") as said:
                check_memory(store.plan, FIELDS, train)
            found = re.search(r"raise train.memory_mib to (\d+),", str(said.value))
            assert found
            enough = int(found[1])
            assert opens(store, train.model_copy(update={"memory_mib": enough}))
            assert not opens(store, train.model_copy(update={"memory_mib": enough - 1}))
    assert seen == {True, False}


def test_only_what_is_read_counts(store: StoreReader) -> None:
    train = TrainConfig(memory_mib=1)
    check_memory(store.plan, ("id", "label", "logits"), train)
    with pytest.raises(UsageError, match=f"holds 3 blocks of 8 rows x {WIDTH + 16} bytes"):
        check_memory(store.plan, FIELDS, train)


def test_early_stopping_takes_a_quarter() -> None:
    assert loader_budgets(TrainConfig(memory_mib=8)) == (8 << 20, 0)
    assert loader_budgets(TrainConfig(memory_mib=8, early_stopping={})) == (6 << 20, 2 << 20)
