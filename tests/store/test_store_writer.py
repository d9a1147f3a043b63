"""Writing: many writers, any of whom may die; disks that fill up; folders that hold something else."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from store_example import TABLES, example_plan, unit_columns, write_example

from kdcache.errors import StorageError, StoreDamaged, StoreMismatch, StoreUnfinished, TrustError, UsageError
from kdcache.store import StoreReader, StoreWriter, describe, open_store, verify
from kdcache.store.commit import claimed

HERE = Path(__file__).parent

WRITE = """
import sys, time
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from store_example import example_plan, unit_columns
from kdcache.errors import StorageError
from kdcache.store import StoreWriter
plan = example_plan(sys.argv[3], rows=400, unit_rows=16)
first, pause = int(sys.argv[4]), float(sys.argv[5])
if len(sys.argv) > 6:
    import resource, signal
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[6]),) * 2)
print("ready", flush=True)
try:
    writer = StoreWriter(Path(sys.argv[2]), plan)
    written = 0
    for unit in writer.work(first):
        time.sleep(pause)
        writer.write(unit, unit_columns(plan, unit))
        written += 1
    manifest = writer.finish()
    print(written, manifest and manifest.digest)
except StorageError as error:
    print(error)
    sys.exit(error.exit_code)
"""


def writer(path: Path, container: str, first: int = 0, pause: float = 0.0, *limit: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", WRITE, HERE, path, container, first, pause, *limit]
    return subprocess.Popen(list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_a_second_call_goes_on(tmp_path: Path) -> None:
    path, plan = tmp_path / "s", example_plan()
    first = StoreWriter(path, plan)
    first.write(1, unit_columns(plan, 1))
    assert first.finish() is None
    with pytest.raises(StoreUnfinished):
        open_store(path)
    kept = (path / "units" / "000001.json").stat().st_ino
    second = StoreWriter(path, plan)
    assert second.missing() == {0, 2}
    assert list(second.work(2)) == [2, 0]
    with write_example(path, plan) as store, write_example(tmp_path / "whole", plan) as whole:
        assert store.manifest.units[1:] == whole.manifest.units[1:]
        assert (path / "units" / "000001.json").stat().st_ino == kept
    assert not (path / "tmp").exists()
    finished = StoreWriter(path, plan)
    assert list(finished.work()) == []
    assert finished.finish() == store.manifest


def test_claimed_units_come_last(tmp_path: Path) -> None:
    path, plan = tmp_path / "s", example_plan(rows=96)
    ours, theirs = StoreWriter(path, plan).work(), StoreWriter(path, plan).work()
    assert [next(ours), next(theirs), next(ours), next(theirs)] == [0, 1, 2, 3]
    assert claimed(path) == {0, 1, 2, 3}
    assert sorted(ours) == [1, 3], "a claim of a dead writer costs only the order"


def test_tables_on_disk_are_taken_by_whoever_comes_later(tmp_path: Path) -> None:
    path, plan = tmp_path / "s", example_plan()
    StoreWriter(path, plan, {"logits": TABLES["soft"]})
    other = {"logits": {"basis": np.zeros((3, 4), np.float32), "bits": np.zeros(3, np.uint8)}}
    late = StoreWriter(path, plan, other)
    assert np.array_equal(late.table("logits")["basis"], TABLES["soft"]["basis"])
    assert late.table("input") == {}


def test_the_first_to_commit_is_kept_where_bits_differ(tmp_path: Path) -> None:
    path, plan = tmp_path / "s", example_plan()
    one, two = StoreWriter(path, plan), StoreWriter(path, plan)
    first = one.write(0, unit_columns(plan, 0))
    other = {**unit_columns(plan, 0), "label": np.zeros(24, np.int64)}
    assert two.write(0, other) == first
    assert len(list((path / "data").iterdir())) == 1
    assert one.write(0, unit_columns(plan, 0)) == first


@pytest.mark.parametrize("container", ["parquet", "hdf5"])
def test_two_processes_write_the_bytes_of_one(tmp_path: Path, container: str) -> None:
    both = [writer(tmp_path / "two", container, first, 0.005) for first in (0, 12)]
    outcomes = [process.communicate(timeout=60) for process in both]
    assert [process.returncode for process in both] == [0, 0], outcomes
    written = [int(out.split()[1]) for out, _ in outcomes]
    with write_example(tmp_path / "one", example_plan(container, rows=400, unit_rows=16)) as one:
        digests = {out.split()[2] for out, _ in outcomes} - {"None"}
        assert len(digests) == 1
        plain = [(r.unit, r.sha256) for r in one.manifest.units]
    with open_store(tmp_path / "two") as two:
        assert {two.digest} == digests
        assert [(r.unit, r.sha256) for r in two.manifest.units] == plain
    assert 25 <= sum(written) <= 25 + 5, written
    assert verify(tmp_path / "two", deep=True)["strange_files"] == []


@pytest.mark.parametrize("container", ["parquet", "hdf5"])
def test_killed_at_any_time_it_goes_on(tmp_path: Path, container: str) -> None:
    path, random = tmp_path / "s", np.random.default_rng(3)
    seen: set[int] = set()
    kills = 0
    for _ in range(8):
        process = writer(path, container, int(random.integers(25)), 0.01)
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(float(random.uniform(0, 0.12)))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        kills += process.returncode == -signal.SIGKILL
        if (path / "plan.json").exists():
            now = set(range(25)) - StoreWriter(path, example_plan(container, rows=400, unit_rows=16)).missing()
            assert seen <= now
            seen = now
    assert kills >= 6
    _, err = writer(path, container).communicate(timeout=60)
    assert err == ""
    with write_example(tmp_path / "whole", example_plan(container, rows=400, unit_rows=16)) as whole:
        assert [r.sha256 for r in StoreReader(path).manifest.units] == [r.sha256 for r in whole.manifest.units]
    assert verify(path, deep=True)["strange_files"] == []


def crash(folder: Path, container: str, mode: str, first: int, step: int) -> dict[str, int]:
    command = [sys.executable, str(HERE / "store_crash.py"), str(folder), container, mode, str(first), str(step)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    result: dict[str, int] = json.loads(done.stdout)
    return result


@pytest.mark.parametrize(("container", "mode"), [("parquet", "kill"), ("hdf5", "torn"), ("parquet", "persistent")])
def test_failing_at_some_changes_of_the_disk(tmp_path: Path, container: str, mode: str) -> None:
    result = crash(tmp_path, container, mode, 3, 7)
    assert result["points"] >= 10
    assert (result["typed"] > 0) == (mode == "persistent")


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["kill", "torn", "ENOSPC", "EIO", "persistent"])
@pytest.mark.parametrize("container", ["parquet", "hdf5"])
def test_failing_at_every_change_of_the_disk(tmp_path: Path, container: str, mode: str) -> None:
    assert crash(tmp_path, container, mode, 1, 1)["points"] >= 70


def test_a_limit_of_the_kernel_on_file_sizes(tmp_path: Path) -> None:
    """A real EFBIG at the first shard: exit 74, nothing committed, the plan stands, and it can go on."""
    path = tmp_path / "s"
    out, err = (failed := writer(path, "parquet", 0, 0.0, 3000)).communicate(timeout=60)
    assert (failed.returncode, err) == (74, "")
    assert "cannot write" in out
    assert "File too large" in out
    assert describe(path)["units_committed"] == 0
    assert not any((path / "data").iterdir())
    out, _ = (again := writer(path, "parquet")).communicate(timeout=60)
    assert again.returncode == 0
    verify(path, deep=True)


def test_a_full_disk_keeps_what_is_committed(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=128k", "tmpfs", disk], capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"no tmpfs can be mounted here: {mounted.stderr.strip()}")
    try:
        failed = writer(disk / "s", "parquet")
        out, err = failed.communicate(timeout=60)
        assert (failed.returncode, err) == (74, "")
        assert "the disk is full; free some space and run the same command again" in out
        done = describe(disk / "s")["units_committed"]
        assert 0 < done < 25
        with pytest.raises(StoreUnfinished, match="are sound"):
            verify(disk / "s")
        subprocess.run(["mount", "-o", "remount,size=1m", disk], check=True)
        out, err = (again := writer(disk / "s", "parquet")).communicate(timeout=60)
        assert (again.returncode, err) == (0, "")
        assert int(out.split()[1]) == 25 - done
        verify(disk / "s", deep=True)
    finally:
        subprocess.run(["umount", disk], check=True)


def test_a_folder_of_something_else_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").write_bytes(b"meow")
    with pytest.raises(UsageError, match=r"is not empty and holds no plan.json, only \['cat.jpg'\]"):
        StoreWriter(tmp_path / "photos", example_plan())
    assert os.listdir(tmp_path / "photos") == ["cat.jpg"]
    with pytest.raises(UsageError, match="is a file"):
        StoreWriter(tmp_path / "photos" / "cat.jpg", example_plan())
    (tmp_path / "empty").mkdir()
    StoreWriter(tmp_path / "empty", example_plan())


def test_another_plan_is_refused_and_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "s"
    write_example(path, example_plan()).close()
    before = sorted((p, p.stat().st_mtime_ns) for p in path.rglob("*"))
    with pytest.raises(StoreMismatch, match="rows is 50 there and 51"):
        StoreWriter(path, example_plan(rows=51))
    assert sorted((p, p.stat().st_mtime_ns) for p in path.rglob("*")) == before


def test_a_plan_that_no_reader_would_take_is_not_written(tmp_path: Path) -> None:
    for change, error in (({"container": {"format": "hdf5", "compression": "lz4"}}, StoreDamaged),
                          ({"rows": 2**40}, TrustError)):  # fmt: skip
        with pytest.raises(error, match="the plan to be written"):
            StoreWriter(tmp_path / "s", example_plan(**change))
        assert not (tmp_path / "s" / "plan.json").exists()


def test_columns_of_another_type_are_a_bug(tmp_path: Path) -> None:
    plan = example_plan()
    columns = unit_columns(plan, 0)
    started = StoreWriter(tmp_path / "s", plan)
    for wrong in (columns["input"][:-1], columns["input"].astype(np.int16), np.asfortranarray(columns["input"])):
        with pytest.raises(ValueError, match="unit 0, column input"):
            started.write(0, {**columns, "input": wrong})


def test_a_shard_lost_before_the_end_is_named(tmp_path: Path) -> None:
    path, plan = tmp_path / "s", example_plan()
    started = StoreWriter(path, plan)
    for unit in range(plan.units):
        started.write(unit, unit_columns(plan, unit))
    next((path / "data").glob("000001-*")).unlink()
    with pytest.raises(StoreDamaged, match=r"committed unit 1 is missing.*delete 000001.json in units/"):
        started.finish()
    (path / "units" / "000001.json").unlink()
    assert list(started.work()) == [1]
    started.write(1, unit_columns(plan, 1))
    assert started.finish() is not None


def test_an_unwritable_folder_is_an_error_of_the_disk(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="Not a directory"):
        StoreWriter(tmp_path / "file" / "s", example_plan())


def test_the_card_is_written_once_and_may_be_edited(tmp_path: Path) -> None:
    path = tmp_path / "s"
    teacher = {"model": "zoo:x\x1b[31m\u202e"}
    write_example(path, example_plan(teacher=teacher)).close()
    card = path / "README.md"
    text = card.read_text()
    assert "50 rows in 3 parquet shards" in text
    assert "| `logits` | float32[10] | topk | 12 |" in text
    assert "\x1b" not in text
    assert "\u202e" not in text
    card.write_text("mine")
    assert StoreWriter(path, example_plan(teacher=teacher)).finish() is not None
    assert card.read_text() == "mine"
    write_example(tmp_path / "t", example_plan(teacher={"strange": 1})).close()
