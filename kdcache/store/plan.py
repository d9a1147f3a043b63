"""The plan: the order of the rows and their cut into units and blocks, written once, before any teacher runs."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdcache.arrays import Array
from kdcache.errors import StoreDamaged, StoreMismatch
from kdcache.fingerprint import canonical, digest_of, sha256
from kdcache.keyed import keyed_order
from kdcache.store.guard import HEX64, MAX_ROWS, check_int, keys, parse_canonical, read_canonical, safe
from kdcache.store.schema import StoredField, columns_of, differing, fields_from_json

__all__ = ["PLAN", "VERSION", "Plan", "read_plan"]

PLAN = "plan.json"
VERSION = 1
PLAN_LIMIT = 8 << 20

_SOURCE: dict[str, type | tuple[type, ...]] = {
    "name": str,
    "fingerprint": str,
    "classes": (int, type(None)),
    "class_names": list,
}
_ORDER: dict[str, type | tuple[type, ...]] = {"kind": str, "seed": int}
_CONTAINER: dict[str, type | tuple[type, ...]] = {"format": str, "compression": str}


@dataclass(frozen=True)
class Plan:
    """All that decides a store's bytes. Two stores of one `alignment` hold the same rows in the same places."""

    rows: int
    source: dict[str, Any]
    order: dict[str, Any]
    unit_rows: int
    block_rows: int
    batch_rows: int
    container: dict[str, str]
    fields: tuple[StoredField, ...]
    input_statistics: dict[str, list[float]] | None = None
    teacher: dict[str, Any] | None = None
    tables: dict[str, str] = dataclasses.field(default_factory=dict)

    @cached_property
    def bytes(self) -> bytes:
        """The canonical bytes of plan.json."""
        return canonical(self.to_json())

    @cached_property
    def digest(self) -> str:
        """SHA-256 of plan.json."""
        return sha256([self.bytes])

    @cached_property
    def alignment(self) -> str:
        """SHA-256 of what two stores must share to be zipped: source, order and cut."""
        return digest_of(
            {
                "source": self.source["fingerprint"],
                "rows": self.rows,
                "order": self.order,
                "unit_rows": self.unit_rows,
                "block_rows": self.block_rows,
            }
        )

    @cached_property
    def columns(self) -> dict[str, Array]:
        """Every column on disk."""
        return columns_of(self.fields)

    @property
    def units(self) -> int:
        """How many units the rows are cut into."""
        return -(-self.rows // self.unit_rows)

    @property
    def classes(self) -> int | None:
        """How many classes the labels and logits tell apart, where that is known."""
        classes: int | None = self.source["classes"]
        return classes

    @property
    def class_names(self) -> tuple[str, ...]:
        """Their names, or nothing."""
        return tuple(self.source["class_names"])

    def unit_range(self, unit: int) -> tuple[int, int]:
        """First row of a unit, and the row after its last."""
        return unit * self.unit_rows, min(self.rows, (unit + 1) * self.unit_rows)

    def unit_blocks(self, unit: int) -> int:
        """How many blocks a unit has."""
        first, last = self.unit_range(unit)
        return -(-(last - first) // self.block_rows)

    @cached_property
    def block_starts(self) -> NDArray[np.int64]:
        """First row of every block, and the number of rows at the end: int64 [G + 1]. Blocks never cross units."""
        per_unit = np.arange(0, self.unit_rows, self.block_rows, dtype=np.int64)
        starts = (np.arange(self.units, dtype=np.int64)[:, None] * self.unit_rows + per_unit).ravel()
        return np.append(starts[starts < self.rows], self.rows)

    def permutation(self) -> NDArray[np.int64]:
        """Which source position stands in each row: int64 [N]."""
        places = np.arange(self.rows, dtype=np.int64)
        return places if self.order["kind"] == "source" else keyed_order(f"kdcache-plan-1|{self.order['seed']}", places)

    def to_json(self) -> dict[str, Any]:
        """The content of plan.json."""
        return {
            "format": "kdcache",
            "version": VERSION,
            "rows": self.rows,
            "source": self.source,
            "order": self.order,
            "unit_rows": self.unit_rows,
            "block_rows": self.block_rows,
            "batch_rows": self.batch_rows,
            "container": self.container,
            "fields": [f.to_json() for f in self.fields],
            "input_statistics": self.input_statistics,
            "teacher": self.teacher,
            "tables": self.tables,
        }

    def check_same(self, theirs: Plan, store: Path) -> None:
        """Raise StoreMismatch, naming the first difference, unless `theirs` (on disk) plans the same store.

        Tables are left out: they are fitted before the first unit, so whoever comes later takes those on disk.
        """
        ours, found = (dataclasses.replace(p, tables={}).to_json() for p in (self, theirs))
        if difference := differing(_by_name(ours), _by_name(found)):
            key, a, b = difference
            raise StoreMismatch(
                f"{store}: holds a store with another plan: {safe(key)} is {safe(b)} there and {safe(a)} "
                "in this recipe; choose another --out, or delete that store"
            )

    def check_aligned(self, other: Plan, ours: Path, theirs: Path) -> None:
        """Raise StoreMismatch unless the two stores hold the same rows in the same places."""
        if self.alignment != other.alignment:
            raise StoreMismatch(
                f"{theirs}: is not aligned with {ours}: its alignment is {other.alignment[:16]}, here it is "
                f"{self.alignment[:16]}; "
                f"dump it again with `kdcache dump --like {ours}`"
            )


def read_plan(store: Path) -> Plan | None:
    """The plan in a store's folder, checked; None where there is none."""
    path = store / PLAN
    try:
        value = read_canonical(path, PLAN_LIMIT)
    except FileNotFoundError:
        return None
    return plan_from_json(value, str(path))


def plan_from_json(value: Any, place: str) -> Plan:
    """A plan from the content of plan.json; raises StoreDamaged, StoreMismatch (newer version) or TrustError."""
    if isinstance(value, dict) and value.get("format") == "kdcache" and value.get("version") != VERSION:
        raise StoreMismatch(
            f"{place}: store format version {safe(value.get('version'))}, this kdcache reads {VERSION}; "
            "install the kdcache that wrote it, or a newer one"
        )
    table = keys(
        value,
        {
            "format": str,
            "version": int,
            "rows": int,
            "source": dict,
            "order": dict,
            "unit_rows": int,
            "block_rows": int,
            "batch_rows": int,
            "container": dict,
            "fields": list,
            "input_statistics": (dict, type(None)),
            "teacher": (dict, type(None)),
            "tables": dict,
        },
        place,
    )
    source, order = keys(table["source"], _SOURCE, f"{place}: source"), keys(table["order"], _ORDER, f"{place}: order")
    container = keys(table["container"], _CONTAINER, f"{place}: container")
    rows = check_int(table["rows"], 1, MAX_ROWS, f"{place}: rows")
    block_rows = check_int(table["block_rows"], 1, 2**31, f"{place}: block_rows")
    unit_rows = check_int(table["unit_rows"], block_rows, 2**31, f"{place}: unit_rows")
    if source["classes"] is not None:
        check_int(source["classes"], 1, 2**31, f"{place}: classes")
    for digest in (source["fingerprint"], *table["tables"].values()):
        if not isinstance(digest, str) or not HEX64.fullmatch(digest):
            raise StoreDamaged(f"{place}: {safe(digest)!r} is not a SHA-256")
    if table["format"] != "kdcache" or unit_rows % block_rows or order["kind"] not in ("shuffled", "source"):
        raise StoreDamaged(f"{place}: format, unit_rows or order hold what no kdcache writes")
    if container["format"] not in ("parquet", "hdf5"):
        raise StoreDamaged(f"{place}: container format {safe(container['format'])!r} is neither parquet nor hdf5")
    if not all(isinstance(name, str) for name in source["class_names"]):
        raise StoreDamaged(f"{place}: class_names are not strings")
    fields = fields_from_json(table["fields"], f"{place}: fields")
    if strange := table["tables"].keys() - {f.name for f in fields}:
        raise StoreDamaged(f"{place}: there are tables of {safe(sorted(strange)[0])!r}, which is not a field")
    return Plan(
        rows,
        source,
        order,
        unit_rows,
        block_rows,
        check_int(table["batch_rows"], 1, unit_rows, f"{place}: batch_rows"),
        container,
        fields,
        _statistics(table["input_statistics"], place),
        table["teacher"],
        table["tables"],
    )


def plan_from_bytes(data: bytes, place: str) -> Plan:
    """A plan from the bytes of plan.json."""
    return plan_from_json(parse_canonical(data, place), place)


def _statistics(value: Any, place: str) -> dict[str, list[float]] | None:
    if value is None:
        return None
    table = keys(value, {"mean": list, "std": list}, f"{place}: input_statistics")
    numbers = [*table["mean"], *table["std"]]
    if (
        len(table["mean"]) != len(table["std"])
        or not all(isinstance(x, float) for x in numbers)
        or min(table["std"]) <= 0
    ):
        raise StoreDamaged(f"{place}: input_statistics are not one mean and one positive std a channel")
    return table


def _by_name(plan: dict[str, Any]) -> dict[str, Any]:
    """The plan with its fields as a table, so that a difference is named by field."""
    return {**plan, "fields": {f["name"]: f for f in plan["fields"]}}
