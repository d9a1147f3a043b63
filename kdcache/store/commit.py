"""The commit protocol: many writers, no lock, no clock, no coordinator; any of them may die at any instant.

1. write the shard under tmp/, sync it        4. link its record to units/NNNNNN.json: THE commit of the unit
2. rename it to data/NNNNNN-<its digest>      5. whoever sees all units committed links manifest.json the same way
3. sync data/                                 A unit's bytes follow from the plan, so it does not matter who won.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from kdcache.errors import StoreDamaged, UsageError
from kdcache.files import create_only, create_text, disk_errors, remove, replace, sync_folder, write_temporary
from kdcache.fingerprint import canonical, sha256
from kdcache.store import hdf5, parquet
from kdcache.store.card import write_card
from kdcache.store.digest import unit_digests
from kdcache.store.manifest import (
    MANIFEST,
    Manifest,
    Record,
    manifest_of,
    read_manifest,
    read_record,
    record_path,
    shard_path,
)
from kdcache.store.plan import PLAN, Plan
from kdcache.store.plan_file import plan_from_bytes, read_plan
from kdcache.store.tables import table_path

__all__ = ["claim", "claimed", "commit_unit", "committed", "finish", "start"]

CONTAINERS = {"parquet": parquet, "hdf5": hdf5}
_SCRATCH = "tmp"


def start(store: Path, plan: Plan, tables: Mapping[str, bytes]) -> Plan:
    """Publish the plan and its tables, or adopt those on disk if they plan the same store; returns the plan in force.

    `tables` are the safetensors bytes of each field that has some; plan.tables holds their SHA-256.
    """
    if store.exists() and not store.is_dir():
        raise UsageError(f"{store}: is a file; --out names the store's folder")
    if (found := read_plan(store)) is None:
        _refuse_foreign(store)
        plan_from_bytes(plan.bytes, f"{store}: the plan to be written")
        with disk_errors(store):
            for field, data in tables.items():
                path = table_path(store, field, plan.tables[field])
                path.parent.mkdir(parents=True, exist_ok=True)
                replace(write_temporary(store / _SCRATCH, data, 0o444), path)
        create_text(store / PLAN, plan.bytes, store / _SCRATCH)
        found = read_plan(store)
        assert found is not None, "the plan was there a moment ago"
    plan.check_same(found, store)
    with disk_errors(store):  # before the first commit, so that no power cut keeps a record and loses its folder
        for folder in ("data", "units"):
            (store / folder).mkdir(exist_ok=True)
        sync_folder(store)
        sync_folder(store.parent)
    return found


def _refuse_foreign(store: Path) -> None:
    """A folder that holds something else is not written into."""
    with disk_errors(store, "open"):
        names = {path.name for path in store.iterdir()} if store.exists() else set()
    strange = sorted(names - {_SCRATCH, "tables"})
    if strange and PLAN not in names:  # another writer may have published the plan a moment ago
        raise UsageError(f"{store}: is not empty and holds no plan.json, only {strange[:3]}; give --out a new folder")


def commit_unit(
    store: Path,
    plan: Plan,
    unit: int,
    columns: Mapping[str, NDArray[Any]],
    facts: Mapping[str, Any] | None = None,
    pixels: Mapping[str, list[str]] | None = None,
) -> Record:
    """Encode, write and commit one unit; if somebody else committed it first, theirs is kept and returned.

    `columns`: for each column of the plan an array [rows of the unit, *shape] of its dtype, C-contiguous. `pixels`: for
    each view of the plan the xxh3_128 of every block's augmented images.
    """
    first, last = plan.unit_range(unit)
    for name, array in plan.columns.items():
        values = columns[name]
        if values.shape != (last - first, *array.shape) or values.dtype != array.numpy or not values.flags.c_contiguous:
            raise ValueError(f"unit {unit}, column {name}: {values.dtype}{list(values.shape)}, the plan has {array}")
    hashed = {view: len(digests) for view, digests in (pixels or {}).items()}
    if hashed != dict.fromkeys(plan.view_names, plan.unit_blocks(unit)):
        raise ValueError(f"unit {unit}: digests of images {hashed}, the plan has views {plan.view_names}")
    schema = {name: columns[name] for name in plan.columns}
    header = canonical(
        {
            "plan": plan.digest,
            "unit": unit,
            "rows": last - first,
            "digests": unit_digests(schema, plan.block_rows),
            **({"pixels": dict(pixels)} if pixels else {}),
        }
    )
    container = CONTAINERS[plan.container["format"]]
    data = container.encode(schema, plan.columns, plan.block_rows, plan.container["compression"], header)
    record = Record(unit, sha256([data]), len(data), dict(facts or {}))
    shard = shard_path(store, plan, record)
    with disk_errors(shard, f"write {len(data)} bytes"):
        try:
            replace(write_temporary(store / _SCRATCH, data, 0o444), shard)
            ours = create_only(
                write_temporary(store / _SCRATCH, canonical(record.to_json()), 0o444), record_path(store, unit)
            )
        except FileNotFoundError:
            # Somebody else finished the store and swept tmp/ while this unit was being written a second time.
            if read_record(store, unit) is None:
                raise
            ours = False
    theirs = record if ours else read_record(store, unit)
    assert theirs is not None, "the record was there a moment ago"
    if theirs.sha256 != record.sha256:
        remove(shard)  # teachers on unlike hardware differ in the last bits; the first to commit is kept
    return theirs


def finish(store: Path, plan: Plan) -> Manifest | None:
    """Publish the manifest and the card if every unit is committed; None if some are still missing."""
    if (manifest := read_manifest(store, plan)) is None:
        records = [record for unit in range(plan.units) if (record := read_record(store, unit)) is not None]
        if len(records) < plan.units:
            return None
        manifest = manifest_of(plan, records)
        _check_present(store, plan, manifest)
        create_text(store / MANIFEST, manifest.bytes, store / _SCRATCH)
    write_card(store, plan, manifest, store / _SCRATCH)
    _sweep(store, plan, manifest)
    return manifest


def _check_present(store: Path, plan: Plan, manifest: Manifest) -> None:
    for record in manifest.units:
        path = shard_path(store, plan, record)
        if not path.is_file() or path.stat().st_size != record.bytes:
            raise StoreDamaged(
                f"{path}: the shard of committed unit {record.unit} is missing or has another size; delete "
                f"{record_path(store, record.unit).name} in units/ and run the dump again"
            )


def _sweep(store: Path, plan: Plan, manifest: Manifest) -> None:
    """Remove what dead writers left: scratch files, and shards of ours that lost the race for their unit."""
    shutil.rmtree(store / _SCRATCH, ignore_errors=True)
    kept = {shard_path(store, plan, record).name for record in manifest.units}
    for path in (store / "data").iterdir():
        if path.name not in kept and re.fullmatch(r"\d{6,}-[0-9a-f]{16}\.(parquet|h5)", path.name):
            remove(path)


def claim(store: Path, unit: int) -> None:
    """Tell other writers that this unit is being worked on: a hint only, so a dead writer's claim delays nothing."""
    with contextlib.suppress(OSError):
        (store / _SCRATCH).mkdir(exist_ok=True)
        (store / _SCRATCH / f"claim-{unit:06d}").touch()


def claimed(store: Path) -> set[int]:
    """The units that some writer, alive or dead, says it is working on."""
    with contextlib.suppress(OSError):
        return {int(path.name[6:]) for path in (store / _SCRATCH).glob("claim-*") if path.name[6:].isdigit()}
    return set()


def committed(store: Path, units: Iterable[int]) -> set[int]:
    """Those of `units` that are committed."""
    with disk_errors(store / "units", "list"), contextlib.suppress(FileNotFoundError):
        names = set(os.listdir(store / "units"))
        return {unit for unit in units if record_path(store, unit).name in names}
    return set()
