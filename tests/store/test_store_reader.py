"""Reading: right, or refused with a type that says why; never wrong, never a crash."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from store_example import CONTAINERS, TABLES, example_plan, unit_columns, write_example

from kdcache.arrays import Array
from kdcache.errors import (
    KdcacheError,
    StorageError,
    StoreDamaged,
    StoreError,
    StoreMismatch,
    StoreUnfinished,
    TrustError,
    UsageError,
)
from kdcache.store import Plan, StoreReader, StoreWriter, convert, describe, open_store, plain_field, verify
from kdcache.store import reader as reader_module
from kdcache.store.manifest import shard_path

REFUSALS = (StoreDamaged, TrustError, StoreMismatch)


def read_all(path: Path) -> bytes:
    with open_store(path) as store:
        return b"".join(store.read_column(name).tobytes() for name in store.columns)


def shard_files(path: Path) -> list[Path]:
    return sorted((path / "data").iterdir())


def flips(path: Path, count: int | None, seed: int) -> Iterator[tuple[Path, bytes]]:
    """Each shard with one bit flipped, at `count` places of all shards, or at every byte."""
    random = np.random.default_rng(seed)
    places = [(file, i) for file in shard_files(path) for i in range(file.stat().st_size)]
    chosen = range(len(places)) if count is None else random.choice(len(places), min(count, len(places)), replace=False)
    for place in chosen:
        file, at = places[place]
        data = file.read_bytes()
        changed = bytearray(data)
        changed[at] ^= 1 << int(random.integers(8))
        yield file, bytes(changed)


def put(file: Path, data: bytes) -> None:
    file.chmod(0o644)
    file.write_bytes(data)


def check_flips(path: Path, plan: Plan, count: int | None) -> None:
    with write_example(path, plan):
        expected = read_all(path)
    messages, total = [], 0
    for file, data in flips(path, count, 1):
        right = file.read_bytes()
        put(file, data)
        total += 1
        try:
            found = read_all(path)
        except REFUSALS as error:
            messages.append(str(error))
        else:
            assert found == expected, "wrong data was delivered"
        with pytest.raises(StoreDamaged, match=f"{file}: expected SHA-256"):
            verify(path)
        put(file, right)
    assert read_all(path) == expected
    assert len(messages) > total / 4
    assert all(text.startswith(f"{path}/data/0000") and text.isprintable() for text in messages), messages


@pytest.mark.parametrize(("container", "compression"), CONTAINERS)
def test_a_flipped_bit_is_never_delivered(tmp_path: Path, container: str, compression: str) -> None:
    check_flips(tmp_path / "s", example_plan(container, compression, rows=20, unit_rows=16), 150)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(("container", "compression"), CONTAINERS)
def test_a_flip_of_every_byte(tmp_path: Path, container: str, compression: str) -> None:
    extra = [plain_field("input", Array("uint8", (5,)))]
    check_flips(
        tmp_path / "s", example_plan(container, compression, rows=6, unit_rows=8, block_rows=4, extra=extra), None
    )


@pytest.mark.parametrize("name", ["plan.json", "manifest.json", "units/000001.json", "tables"])
def test_a_flip_of_any_byte_beside_the_shards(tmp_path: Path, name: str) -> None:
    path = tmp_path / "s"
    write_example(path, example_plan(rows=20, unit_rows=16), TABLES_OF_LOGITS).close()
    expected = read_all(path)
    file = next((path / "tables").iterdir()) if name == "tables" else path / name
    right = file.read_bytes()
    random = np.random.default_rng(2)
    for at in random.choice(len(right), min(150, len(right)), replace=False):
        changed = bytearray(right)
        changed[at] ^= 1 << int(random.integers(8))
        put(file, bytes(changed))
        with pytest.raises((*REFUSALS, StoreError)) as caught:
            verify(path)
        assert caught.value.exit_code in (65, 77)
        if name == "plan.json":
            with pytest.raises(REFUSALS):
                open_store(path)
        elif name == "units/000001.json":
            assert read_all(path) == expected
    put(file, right)
    verify(path, deep=True)


TABLES_OF_LOGITS = {"logits": TABLES["soft"]}


@pytest.mark.parametrize("container", ["parquet", "hdf5"])
def test_missing_truncated_grown_and_swapped_shards(tmp_path: Path, container: str) -> None:
    path = tmp_path / "s"
    write_example(path, example_plan(container, rows=48, unit_rows=24)).close()
    first, second = shard_files(path)
    one, two = first.read_bytes(), second.read_bytes()
    for data in (one[:-1], one[: len(one) // 2], b"", one + b"\0"):
        put(first, data)
        with pytest.raises(StoreDamaged, match=f"{first}: the manifest has a shard of .* but it has {len(data)} bytes"):
            open_store(path)
    first.unlink()
    with pytest.raises(StoreDamaged, match=f"{first}: .* it is missing; restore"):
        open_store(path)
    with pytest.raises(StoreDamaged, match="missing"):
        verify(path)
    first.write_bytes(two)
    put(second, one)
    with pytest.raises(StoreDamaged):
        read_all(path)
    with pytest.raises(StoreDamaged, match="expected SHA-256"):
        verify(path)


@pytest.mark.parametrize("container", ["parquet", "hdf5"])
def test_a_shard_of_another_store_with_equal_rows_is_refused(tmp_path: Path, container: str) -> None:
    write_example(tmp_path / "a", example_plan(container)).close()
    write_example(tmp_path / "b", example_plan(container, order={"kind": "shuffled", "seed": 1})).close()
    for ours, theirs in zip(shard_files(tmp_path / "a"), shard_files(tmp_path / "b"), strict=True):
        put(ours, theirs.read_bytes())
    with open_store(tmp_path / "a") as store, pytest.raises(StoreDamaged, match="belongs to another store or unit"):
        store.read_column("id")


TRUNCATE = """
import os, sys
from pathlib import Path
import numpy as np
from kdcache.errors import StoreDamaged
from kdcache.store import open_store
with open_store(sys.argv[1]) as store:
    store.read_column("id", 0, 1)  # opens the first shard
    for file in sorted((Path(sys.argv[1]) / "data").iterdir()):
        file.chmod(0o644)
        os.truncate(file, int(sys.argv[2]))
    for column in store.columns:
        for unit in (0, 1):
            try:
                store.read_column(column, unit * 24 + 16, unit * 24 + 24)
            except StoreDamaged as error:
                print("refused")
"""


@pytest.mark.parametrize(("container", "compression"), CONTAINERS)
@pytest.mark.parametrize("size", [0, 300])
def test_truncation_while_open_is_an_error_and_no_signal(
    tmp_path: Path, container: str, compression: str, size: int
) -> None:
    write_example(tmp_path / "s", example_plan(container, compression)).close()
    done = subprocess.run(
        [sys.executable, "-c", TRUNCATE, tmp_path / "s", str(size)], capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("refused") >= 10


def test_deleted_while_open_is_an_error_of_the_disk(tmp_path: Path) -> None:
    with write_example(tmp_path / "s", example_plan()) as store:
        shutil.rmtree(tmp_path / "s" / "data")
        with pytest.raises(StorageError, match="cannot read: No such file"):
            store.read_column("id")


@pytest.mark.parametrize("container", ["parquet", "hdf5"])
def test_more_units_than_open_files_from_many_threads(tmp_path: Path, container: str) -> None:
    plan = example_plan(container, rows=95, unit_rows=1, block_rows=1, extra=())
    store = write_example(tmp_path / "s", plan)
    before = len(os.listdir("/proc/self/fd"))
    expected, errors = plan.permutation(), []

    def work(seed: int) -> None:
        out = np.empty(8, np.uint8)
        try:
            for block in np.random.default_rng(seed).permutation(95):
                store.read_block(int(block), "id", out)
                assert out.view("<i8")[0] == expected[block]
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert len(store._shards) == reader_module._OPEN_SHARDS == 64
    store.close()
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_held_shard_outlives_its_eviction(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader_module, "_OPEN_SHARDS", 1)
    with write_example(tmp_path / "s", example_plan(rows=40, unit_rows=8)) as store:
        held = store._shard(0)
        store.read_column("id")
        out = np.empty(64, np.uint8)
        held.read("id", 0, out)
        assert out.view("<i8").tolist() == store.plan.permutation()[:8].tolist()
        held.release()
        assert held._descriptor == -1


def test_a_block_is_compared_with_its_digest_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    monkeypatch.setattr(reader_module, "check_block", lambda data, expected, shard, block, column: calls.append(column))
    with write_example(tmp_path / "s", example_plan()) as store:
        for _ in range(3):
            store.read_column("label")
    assert calls == ["label"] * 7


def test_what_is_not_a_store(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="no such folder"):
        open_store(tmp_path / "nothing")
    with pytest.raises(StoreError, match=r"holds no plan.json"):
        open_store(tmp_path)
    with (
        write_example(tmp_path / "s", example_plan()) as store,
        pytest.raises(UsageError, match="no column 'logit', its columns are"),
    ):
        store.read_column("logit")
    shutil.rmtree(tmp_path / "s" / "data")
    with pytest.raises(KdcacheError, match="data: cannot list"):
        open_store(tmp_path / "s")


def test_an_unfinished_store_is_described_and_checked_as_far_as_it_goes(tmp_path: Path) -> None:
    path, plan = tmp_path / "s", example_plan()
    writer = StoreWriter(path, plan)
    assert describe(path)["units_committed"] == 0
    writer.write(1, unit_columns(plan, 1))
    assert writer.finish() is None
    facts = describe(path)
    assert (facts["complete"], facts["units"], facts["units_committed"]) == (False, 3, 1)
    assert facts["digest"] is None
    assert facts["bytes"] == shard_files(path)[0].stat().st_size
    for action in (open_store, verify):
        with pytest.raises(StoreUnfinished, match=r"1 .*units of 3|1 of 3 units"):
            action(path)
    put(shard_files(path)[0], shard_files(path)[0].read_bytes()[:-1])
    with pytest.raises(StoreDamaged):
        verify(path)


def test_description_and_strange_files(tmp_path: Path) -> None:
    path = tmp_path / "s"
    store = write_example(path, example_plan(), TABLES_OF_LOGITS)
    facts = describe(path)
    assert facts["complete"]
    assert facts["digest"] == store.digest
    assert facts["bytes"] == sum(file.stat().st_size for file in shard_files(path))
    assert facts["bytes_per_row"] == round(facts["bytes"] / 50, 2)
    assert facts["facts"] == {"fidelity": {"kl": 0.25}}
    assert facts["fields"]["logits"] == {
        "array": "float32[10]", "codec": "topk", "k": 2, "dtype": "float16", "bytes_per_row": 12,
    }  # fmt: skip
    (path / ".git").mkdir()
    (path / ".git" / "evil.bin").touch()
    (path / "data" / "000000-0000000000000000.parquet").symlink_to("/etc/passwd")
    seen: list[tuple[int, int]] = []
    found = verify(path, deep=True, progress=lambda done, total: seen.append((done, total)))
    assert found["strange_files"] == [".git/evil.bin", "data/000000-0000000000000000.parquet"]
    assert seen[-1][0] == seen[-1][1] == 2 * facts["bytes"]
    assert np.array_equal(store.table("logits")["basis"], TABLES["soft"]["basis"])
    assert store.table("input") == {}
    next((path / "tables").iterdir()).unlink()
    with pytest.raises(StoreDamaged, match="tables of logits are missing"):
        store.table("logits")
    store.close()


@pytest.mark.parametrize(("container", "compression"), CONTAINERS)
def test_conversion_there_and_back(tmp_path: Path, container: str, compression: str) -> None:
    plan = example_plan(rows=20, unit_rows=16)
    with write_example(tmp_path / "a", plan, TABLES_OF_LOGITS) as store:
        digest, seen = store.digest, []
    there = convert(tmp_path / "a", tmp_path / "b", container, compression, lambda *done: seen.append(done))
    assert seen == [(1, 2), (2, 2)]
    assert there.facts == {"fidelity": {"kl": 0.25}}
    assert read_all(tmp_path / "b") == read_all(tmp_path / "a")
    with StoreReader(tmp_path / "b") as b, StoreReader(tmp_path / "a") as a:
        assert b.plan.alignment == a.plan.alignment
        assert b.table("logits")["bits"].tolist() == [3, 2, 1]
        suffix = {"parquet": ".parquet", "hdf5": ".h5"}[container]
        assert shard_path(b.path, b.plan, b.manifest.units[0]).suffix == suffix
    assert convert(tmp_path / "b", tmp_path / "c", "parquet", "none").digest == digest
    for ours, theirs in zip(shard_files(tmp_path / "a"), shard_files(tmp_path / "c"), strict=True):
        assert ours.read_bytes() == theirs.read_bytes()
    with pytest.raises(UsageError, match="take one of"):
        convert(tmp_path / "a", tmp_path / "d", container, "brotli")
    assert not (tmp_path / "d").exists()
