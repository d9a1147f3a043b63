"""Stores as a stranger could forge them: every digest right, only the content is not what kdcache writes."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

from kdcache.arrays import Array
from kdcache.errors import KdcacheError
from kdcache.fingerprint import canonical
from kdcache.store import Plan, hdf5, open_store, parquet, plain_field, verify
from kdcache.store.digest import unit_digests

__all__ = ["CONTAINERS", "READ", "check", "columns", "forge", "growth", "header", "honest", "plan_of", "refusal"]

CONTAINERS = {"parquet": parquet, "hdf5": hdf5}
ROWS = 6


def plan_of(container: str = "parquet", compression: str = "none", rows: int = ROWS) -> Plan:
    return Plan(
        rows=rows,
        source={"name": "example", "fingerprint": "ab" * 32, "classes": 3, "class_names": ["a", "b", "c"]},
        order={"kind": "source", "seed": 0},
        unit_rows=rows,
        block_rows=rows,
        batch_rows=rows,
        container={"format": container, "compression": compression},
        fields=(plain_field("id", Array("int64")), plain_field("logits", Array("float32", (4,)))),
        input_statistics={"mean": [0.5], "std": [2.0]},
        teacher={"model": "zoo:convnet", "args": {}},
    )


def columns(plan: Plan) -> dict[str, np.ndarray[Any, Any]]:
    rows = np.arange(plan.rows)
    return {"id": rows.astype(np.int64), "logits": np.outer(rows, [1, 2, 3, 4]).astype(np.float32)}


def header(plan: Plan) -> bytes:
    digests = unit_digests(columns(plan), plan.block_rows)
    return canonical({"plan": plan.digest, "unit": 0, "rows": plan.rows, "digests": digests})


def honest(plan: Plan) -> bytes:
    """The shard that kdcache writes."""
    encode = CONTAINERS[plan.container["format"]].encode
    return bytes(encode(columns(plan), plan.columns, plan.block_rows, plan.container["compression"], header(plan)))


def forge(path: Path, plan: Plan, shard: bytes | Path) -> Path:
    """A store of one unit around any shard; returns the shard's path."""
    data = shard.read_bytes() if isinstance(shard, Path) else shard
    digest = hashlib.sha256(data).hexdigest()
    record = {"unit": 0, "sha256": digest, "bytes": len(data), "facts": {}}
    shutil.rmtree(path, ignore_errors=True)
    for folder in ("data", "units"):
        (path / folder).mkdir(parents=True)
    (path / "plan.json").write_bytes(plan.bytes)
    final = path / "data" / f"000000-{digest[:16]}{CONTAINERS[plan.container['format']].SUFFIX}"
    final.write_bytes(data)
    (path / "units" / "000000.json").write_bytes(canonical(record))
    manifest = {"format": "kdcache", "version": 1, "plan": plan.digest, "alignment": plan.alignment, "rows": plan.rows}
    (path / "manifest.json").write_bytes(canonical({**manifest, "units": [record]}))
    return final


def check(error: KdcacheError) -> None:
    """A refusal has the exit code of bad data or of trust, and a message that is fit for a terminal."""
    assert error.exit_code in (65, 77), repr(error)
    assert str(error).isprintable(), f"not fit for a terminal: {error}"
    assert len(str(error)) < 2000


def refusal(path: Path, deep: bool = True) -> KdcacheError | None:
    """What reading every column raises, or None; anything but a typed refusal of data or trust is passed on."""
    try:
        with open_store(path) as store:
            for name in store.columns:
                store.read_column(name)
            for field in store.plan.tables:
                store.table(field)
    except KdcacheError as error:
        check(error)
        if deep:
            try:
                verify(path, deep=True)
            except KdcacheError:
                return error
            raise AssertionError(f"verify passes what reading refuses: {error}") from error
        return error
    return None


READ = """
import resource, sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from hostile_store import refusal
import h5py, pyarrow.parquet
resource.setrlimit(resource.RLIMIT_AS, ((4 << 30), (4 << 30)))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
error = refusal(Path(sys.argv[2]), False)
grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
print(type(error).__name__, grown // 1024, error)
"""


def growth(store: Path) -> tuple[str, int]:
    """Which error reading the store raises, and by how many MiB the process grew."""
    done = subprocess.run(
        [sys.executable, "-c", READ, str(Path(__file__).parent), str(store)], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    kind, grown, *_ = done.stdout.split()
    return kind, int(grown)
