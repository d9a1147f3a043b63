"""A program for the tests: write a store, fail at the k-th change of the disk for every k, go on, compare.

    python store_crash.py FOLDER parquet|hdf5 kill|torn|ENOSPC|EIO|persistent FIRST STEP

kill: the process is gone before the change. torn: half of the bytes of a write get through first. ENOSPC, EIO: this one
call fails; persistent: it and all later ones fail with ENOSPC. Prints one line of JSON: {"points": …, "typed": …}.
The processes are forked before pyarrow or HDF5 have started threads.
"""

from __future__ import annotations

import errno
import functools
import hashlib
import itertools
import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from store_example import TABLES, example_plan, unit_columns

from kdcache.errors import StorageError, StoreError
from kdcache.store import StoreReader, StoreWriter, verify
from kdcache.store.commit import committed
from kdcache.store.manifest import read_record, shard_path

CHANGES = ("open", "write", "fsync", "fchmod", "rename", "link", "unlink", "mkdir", "rmdir")


def write(path: Path, container: str) -> str:
    plan = example_plan(container, rows=20, unit_rows=8, block_rows=4)
    writer = StoreWriter(path, plan, {"logits": TABLES["soft"]})
    for unit in writer.work():
        writer.write(unit, unit_columns(plan, unit))
    manifest = writer.finish()
    assert manifest is not None
    return manifest.digest


def fail_at(k: int, mode: str) -> Callable[[], bool]:
    """Patch `os` in this process; returns whether the k-th change was reached."""
    seen = 0

    def patched(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal seen
            if name == "open" and not args[1] & os.O_CREAT:
                return real(*args, **kwargs)
            seen += 1
            if seen == k or (mode == "persistent" and seen > k):
                if mode in ("kill", "torn"):
                    if name == "write" and mode == "torn":
                        real(args[0], args[1][: len(args[1]) // 2])
                    os._exit(9)
                number = errno.EIO if mode == "EIO" else errno.ENOSPC
                if name in ("unlink", "rmdir", "fchmod") and number == errno.ENOSPC:
                    return real(*args, **kwargs)  # the kernel has room for these
                raise OSError(number, os.strerror(number))
            return real(*args, **kwargs)

        return call

    for name in CHANGES:
        setattr(os, name, patched(name, getattr(os, name)))
    return lambda: seen >= k


def in_child(work: Callable[[], int]) -> int:
    """The exit status of `work` in a forked process."""
    if (child := os.fork()) == 0:
        status = 99
        try:
            status = work()
        except BaseException:
            import traceback

            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def failing(path: Path, container: str, k: int, mode: str) -> int:
    reached = fail_at(k, mode)
    try:
        write(path, container)
        return 0 if reached() else 10
    except StorageError as error:
        helpful = mode != "persistent" or "the disk is full; free some space" in str(error)
        return error.exit_code if helpful else 98


def sound(path: Path, container: str, expected: str) -> int:
    """What is committed is whole; the store goes on to the same manifest; nothing is left over."""
    plan = example_plan(container, rows=20, unit_rows=8, block_rows=4)
    units = committed(path, range(plan.units))
    for unit in units:
        record = read_record(path, unit)
        assert record is not None
        assert shard_path(path, plan, record).stat().st_size == record.bytes
    kept = {file: file.stat().st_ino for unit in units for file in (path / "units").glob(f"{unit:06d}.json")}
    try:
        with StoreReader(path) as store:
            assert store.digest == expected
    except StoreError:
        assert not (path / "manifest.json").exists()
    assert write(path, container) == expected
    assert all(file.stat().st_ino == inode for file, inode in kept.items()), "a committed unit was written again"
    facts = verify(path, deep=True)
    assert facts["digest"] == expected
    assert facts["strange_files"] == []
    return 0


def main(folder: Path, container: str, mode: str, first: int, step: int) -> None:
    whole = folder / "whole"
    assert in_child(lambda: 0 if write(whole, container) else 1) == 0
    expected = hashlib.sha256((whole / "manifest.json").read_bytes()).hexdigest()
    points = typed = 0
    for k in itertools.count(first, step):
        path = folder / "store"
        status = in_child(functools.partial(failing, path, container, k, mode))
        if status == 10:
            break
        assert status in (0, 9, 74), (k, status)
        points, typed = points + 1, typed + (status == 74)
        assert in_child(functools.partial(sound, path, container, expected)) == 0, (k, mode)
        shutil.rmtree(path)
    print(json.dumps({"points": points, "typed": typed}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], sys.argv[3], int(sys.argv[4]), int(sys.argv[5]))
