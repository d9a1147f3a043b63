"""`verify`: is every byte of a store what its manifest says, and does every block still decode?"""

from __future__ import annotations

import hashlib
import itertools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from kdcache.errors import StoreDamaged, StoreUnfinished
from kdcache.files import disk_errors, open_regular, read_exactly
from kdcache.store.commit import committed
from kdcache.store.manifest import MANIFEST, Record, read_record, record_path, shard_path
from kdcache.store.plan import PLAN, Plan
from kdcache.store.reader import open_store, read_head
from kdcache.store.tables import table_path

__all__ = ["describe", "verify"]

_PIECE = 8 << 20


def verify(path: Path, deep: bool = False, progress: Callable[[int, int], None] | None = None) -> dict[str, Any]:
    """Check a store against its manifest; raises StoreDamaged at the first difference.

    Always: plan, records, manifest and tables agree, and each shard has its SHA-256. `deep`: every block of every
    column is decoded as well and compared with its xxh3_128. `progress(done, total)` counts bytes. An unfinished store
    is checked as far as it goes, then StoreUnfinished is raised. Returns facts, and the files that do not belong.
    """
    plan, manifest = read_head(path)
    records = (
        list(manifest.units)
        if manifest
        else [record for unit in range(plan.units) if (record := read_record(path, unit)) is not None]
    )
    total, done = sum(record.bytes for record in records) * (1 + deep), 0
    for record in records:
        if manifest and (found := read_record(path, record.unit)) != record:
            raise StoreDamaged(
                f"{record_path(path, record.unit)}: says {found and found.sha256}, the manifest says "
                f"{record.sha256}; restore it from a good copy"
            )
        _check_shard(shard_path(path, plan, record), record)
        done += record.bytes
        if progress:
            progress(done, total)
    if manifest is None:
        raise StoreUnfinished(
            f"{path}: is unfinished; its {len(records)} committed units of {plan.units} are sound; run the "
            "same `kdcache dump` again to finish it"
        )
    with open_store(path) as store:
        for field in plan.tables:
            store.table(field)
        if deep:
            sizes = iter(enumerate(np.diff(store.block_starts)))
            for record in records:
                for block, rows in itertools.islice(sizes, plan.unit_blocks(record.unit)):
                    for column, array in store.columns.items():
                        store.read_block(block, column, np.empty(int(rows) * array.width, np.uint8))
                done += record.bytes
                if progress:
                    progress(done, total)
    return {
        "store": str(path),
        "digest": manifest.digest,
        "rows": plan.rows,
        "units": plan.units,
        "bytes": manifest.data_bytes,
        "deep": deep,
        "strange_files": _strange(path, plan, records),
    }


def _check_shard(path: Path, record: Record) -> None:
    with disk_errors(path, "read"):
        try:
            descriptor = open_regular(path)
        except FileNotFoundError:
            raise StoreDamaged(
                f"{path}: the shard of unit {record.unit} is missing; restore it from a good copy"
            ) from None
        try:
            size = os.fstat(descriptor).st_size
            if size != record.bytes:
                raise StoreDamaged(
                    f"{path}: {size} bytes, the manifest says {record.bytes}; restore it from a good copy"
                )
            state, offset, piece = hashlib.sha256(), 0, bytearray(min(_PIECE, size))
            while read := read_exactly(descriptor, memoryview(piece), offset):
                state.update(memoryview(piece)[:read])
                offset += read
        finally:
            os.close(descriptor)
    if state.hexdigest() != record.sha256:
        raise StoreDamaged(
            f"{path}: expected SHA-256 {record.sha256}, found {state.hexdigest()}; the shard is damaged: "
            "restore it from a good copy"
        )


def _strange(path: Path, plan: Plan, records: list[Record]) -> list[str]:
    """Files in the folder that are not the store's: listed, never opened."""
    ours = {path / PLAN, path / MANIFEST, path / "README.md"}
    for record in records:
        ours |= {shard_path(path, plan, record), record_path(path, record.unit)}
    ours |= {table_path(path, field, digest) for field, digest in plan.tables.items()}
    found = (Path(folder) / name for folder, _, names in os.walk(path) for name in names)
    return sorted(str(p.relative_to(path)) for p in found if p not in ours)


def describe(path: Path) -> dict[str, Any]:
    """The facts of a store, finished or not, as `kdcache info --json` prints them."""
    plan, manifest = read_head(path)
    units = range(plan.units)
    records = manifest.units if manifest else [r for unit in units if (r := read_record(path, unit)) is not None]
    return {
        "store": str(path),
        "complete": manifest is not None,
        "rows": plan.rows,
        "units": plan.units,
        "units_committed": len(committed(path, units)),
        "format": plan.container["format"],
        "compression": plan.container["compression"],
        "unit_rows": plan.unit_rows,
        "block_rows": plan.block_rows,
        "order": plan.order,
        "bytes": sum(record.bytes for record in records),
        "bytes_per_row": round(manifest.data_bytes / plan.rows, 2) if manifest else None,
        "digest": manifest.digest if manifest else None,
        "plan": plan.digest,
        "alignment": plan.alignment,
        "source": plan.source,
        "teacher": plan.teacher,
        "input_statistics": plan.input_statistics,
        "fields": {
            f.name: {"array": str(f.array), "codec": f.codec, **f.configuration, "bytes_per_row": f.width}
            for f in plan.fields
        },
        "budget": plan.budget,
        "facts": manifest.facts if manifest else {},
    }
