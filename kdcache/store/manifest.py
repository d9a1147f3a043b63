"""Commit records (one a unit) and the manifest (one a store, published last): what a store says of its own content."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from kdcache.errors import StoreDamaged, StoreMismatch
from kdcache.fingerprint import canonical, sha256
from kdcache.store import hdf5, parquet
from kdcache.store.drift import drift
from kdcache.store.guard import HEX64, check_int, keys, read_canonical, safe
from kdcache.store.plan import VERSION, Plan

__all__ = ["MANIFEST", "Manifest", "Record", "read_manifest", "read_record", "record_path", "shard_path"]

MANIFEST = "manifest.json"
_MANIFEST_LIMIT = 64 << 20
_RECORD_LIMIT = 1 << 20
_SHARD_LIMIT = 2**44


@dataclass(frozen=True)
class Record:
    """What is known of one committed unit. `facts` were measured by its writer: its error, on unit 0 fidelity too."""

    unit: int
    sha256: str
    bytes: int
    facts: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        """The content of units/NNNNNN.json."""
        return {"unit": self.unit, "sha256": self.sha256, "bytes": self.bytes, "facts": self.facts}


@dataclass(frozen=True)
class Manifest:
    """What a finished store is. Its SHA-256 is the store's identity; no clock, host or process is in it."""

    plan: str
    alignment: str
    rows: int
    units: tuple[Record, ...]

    @cached_property
    def bytes(self) -> bytes:
        """The canonical bytes of manifest.json."""
        return canonical(
            {
                "format": "kdcache",
                "version": VERSION,
                "plan": self.plan,
                "alignment": self.alignment,
                "rows": self.rows,
                "units": [record.to_json() for record in self.units],
            }
        )

    @cached_property
    def digest(self) -> str:
        """SHA-256 of manifest.json: the store's identity."""
        return sha256([self.bytes])

    @property
    def data_bytes(self) -> int:
        """Bytes of all shards."""
        return sum(record.bytes for record in self.units)

    @property
    def facts(self) -> dict[str, Any]:
        """What was measured while dumping, gathered from the records: each key from the first unit that has it.

        The units' own errors come as `drift`: those that are out of unit 0's range (see `kdcache.store.drift`), if any.
        """
        found: dict[str, Any] = {}
        for record in self.units:
            for key in record.facts.keys() - {"error", "drift"}:
                found.setdefault(key, record.facts[key])
        drifted = drift({record.unit: record.facts for record in self.units})
        return {**found, **({"drift": drifted} if drifted else {})}


def manifest_of(plan: Plan, records: Sequence[Record]) -> Manifest:
    """The manifest of a plan whose units are all committed."""
    return Manifest(plan.digest, plan.alignment, plan.rows, tuple(records))


def shard_path(store: Path, plan: Plan, record: Record) -> Path:
    """Where a unit's shard lies: derived from its number and digest, never read from a file."""
    suffix = {"parquet": parquet.SUFFIX, "hdf5": hdf5.SUFFIX}[plan.container["format"]]
    return store / "data" / f"{record.unit:06d}-{record.sha256[:16]}{suffix}"


def record_path(store: Path, unit: int) -> Path:
    """Where a unit's commit record lies."""
    return store / "units" / f"{unit:06d}.json"


def read_record(store: Path, unit: int) -> Record | None:
    """The commit record of a unit; None where it is not committed yet."""
    path = record_path(store, unit)
    try:
        value = read_canonical(path, _RECORD_LIMIT)
    except FileNotFoundError:
        return None
    return _record(value, unit, str(path))


def read_manifest(store: Path, plan: Plan) -> Manifest | None:
    """The manifest of a store, compared with its plan; None where the store is unfinished."""
    path = store / MANIFEST
    try:
        value = read_canonical(path, min(_MANIFEST_LIMIT, _RECORD_LIMIT + (plan.units << 12)))
    except FileNotFoundError:
        return None
    if isinstance(value, dict) and value.get("version") != VERSION:
        raise StoreMismatch(f"{path}: store format version {safe(value.get('version'))}, this kdcache reads {VERSION}")
    table = keys(
        value, {"format": str, "version": int, "plan": str, "alignment": str, "rows": int, "units": list}, str(path)
    )
    for name, found, expected in (
        ("format", table["format"], "kdcache"),
        ("plan", table["plan"], plan.digest),
        ("alignment", table["alignment"], plan.alignment),
        ("rows", table["rows"], plan.rows),
        ("units", len(table["units"]), plan.units),
    ):
        if found != expected:
            raise StoreDamaged(
                f"{path}: {name} is {safe(found)}, plan.json says {expected}; restore both from a good copy"
            )
    return Manifest(
        table["plan"],
        table["alignment"],
        table["rows"],
        tuple(_record(item, unit, f"{path}: units[{unit}]") for unit, item in enumerate(table["units"])),
    )


def _record(value: Any, unit: int, place: str) -> Record:
    table = keys(value, {"unit": int, "sha256": str, "bytes": int, "facts": dict}, place)
    if table["unit"] != unit or not HEX64.fullmatch(table["sha256"]):
        found = safe(table["unit"])
        raise StoreDamaged(f"{place}: expected the record of unit {unit} with a SHA-256, found unit {found}")
    return Record(unit, table["sha256"], check_int(table["bytes"], 1, _SHARD_LIMIT, f"{place}: bytes"), table["facts"])
