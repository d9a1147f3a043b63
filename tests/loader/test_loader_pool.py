"""Failure: damage, stalls and abandonment end in a typed error or at once, never in a hang."""

from __future__ import annotations

import gc
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from loader_stores import WIDTH, tensor, write_store
from numpy.typing import NDArray

from kdcache.errors import StorageError
from kdcache.loader import StreamingLoader, pool
from kdcache.store import StoreReader

ROWS = 640
TIGHT = 9 * 16 * WIDTH


class Stalling(StoreReader):
    """A real store on a disk that stops answering after `good` blocks, until `go` is set."""

    good = 10**9

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.go, self.asked = threading.Event(), 0

    def read_block(self, block: int, column: str, out: NDArray[np.uint8]) -> None:
        self.asked += 1
        if self.asked > self.good and not self.go.wait(60):
            raise AssertionError("the test left the reader waiting")
        super().read_block(block, column, out)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write_store(tmp_path / "store", ROWS).path


def readers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("kdcache-read")]


def all_left(seconds: float = 30) -> bool:
    until = time.monotonic() + seconds
    while readers() and time.monotonic() < until:
        time.sleep(0.01)
    return not readers()


def test_a_stalled_disk_is_an_error_within_the_deadline(path: Path) -> None:
    store = Stalling(path)
    store.good = 60
    loader = StreamingLoader(store, 32, lanes=8, memory_budget=TIGHT, timeout=3)
    found: list[int] = []
    taken: list[float] = [time.monotonic()]

    def drain() -> None:
        for batch in loader:
            found.extend(tensor(batch, "id").tolist())
            taken.append(time.monotonic())

    with pytest.raises(StorageError, match=f"{path}: block [0-9]+, .*: not read within 3 s"):
        drain()
    assert time.monotonic() - taken[-1] < 30
    store.go.set()  # the disk is back: the same loader goes on where it stood
    drain()
    assert found == (loader.order(0)[:] * 3 + 7).tolist()
    assert all_left()


def test_a_slow_disk_that_goes_on_is_no_error(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Stalling(path)
    # A clock that only reads move, so that no busy machine decides. A block is two columns, id and label, and takes
    # 0.8 deadlines; the one batch takes 32.
    monkeypatch.setattr(pool, "time", SimpleNamespace(monotonic=lambda: 8.0 * store.asked))
    assert len(list(StreamingLoader(store, ROWS, fields=["label"], timeout=20, threads=1))) == 1
    assert store.asked == 80


def test_a_readers_error_comes_out_as_itself(path: Path) -> None:
    class Broken(Stalling):
        def read_block(self, block: int, column: str, out: NDArray[np.uint8]) -> None:
            raise PermissionError(13, "not yours")

    with pytest.raises(PermissionError, match="not yours"):
        list(StreamingLoader(Broken(path), 32))
    assert all_left()


def test_a_stopped_consumer_stops_the_reading(path: Path) -> None:
    loader = StreamingLoader(path, 16, lanes=4, memory_budget=6 * 16 * WIDTH)
    batches = iter(loader)
    next(batches)
    time.sleep(0.2)
    assert loader.stats()["blocks_read"] <= 6 + 4
    assert readers()
    del batches
    assert all_left()


def test_break_and_garbage_leave_no_thread(path: Path) -> None:
    loader = StreamingLoader(path, 16, lanes=8, memory_budget=TIGHT)
    for _ in loader:
        break
    assert all_left()
    batches = iter(loader)
    next(batches)
    loader.close()
    assert all_left()
    loader = StreamingLoader(path, 16, lanes=8, memory_budget=TIGHT)
    batches = iter(loader)
    next(batches)
    del loader, batches
    gc.collect()
    assert all_left()


@pytest.mark.parametrize("ending", ["pass", "raise KeyError('a bug')"])
def test_the_interpreter_exits_at_once_while_threads_wait_and_read(path: Path, ending: str) -> None:
    script = f"""
import pathlib, sys, threading, time
sys.path[:0] = {sys.path!r}
from test_loader_pool import Stalling, TIGHT
from kdcache.errors import StorageError
from kdcache.loader import StreamingLoader
store = Stalling(pathlib.Path({str(path)!r}))
waiting = iter(StreamingLoader(store.path, 16, lanes=8, memory_budget=TIGHT)); next(waiting)
reading = iter(StreamingLoader(store, 16, lanes=8, memory_budget=TIGHT, timeout=3)); next(reading)
store.good = 0
try:
    list(reading)
except StorageError:
    assert any(t.name.startswith("kdcache-read") for t in threading.enumerate())
else:
    raise AssertionError("the disk did not stall")
print("end", time.time(), flush=True)
{ending}
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    left = time.time() - float(done.stdout.split()[1])
    assert done.returncode == (0 if ending == "pass" else 1), done.stderr
    assert left < 30
