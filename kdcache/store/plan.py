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
from kdcache.errors import StoreMismatch
from kdcache.fingerprint import canonical, digest_of, sha256
from kdcache.keyed import keyed_order
from kdcache.store.guard import safe
from kdcache.store.schema import StoredField, columns_of, differing

__all__ = ["COMPRESSIONS", "PLAN", "VERSION", "Plan"]

PLAN = "plan.json"
VERSION = 1
COMPRESSIONS = {"parquet": ("none", "lz4", "zstd"), "hdf5": ("none", "deflate")}


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
    budget: dict[str, Any] = dataclasses.field(default_factory=dict)
    views: dict[str, Any] | None = None

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
        """SHA-256 of what two stores must share to be zipped: source, order, cut and views."""
        return digest_of(
            {
                "source": self.source["fingerprint"],
                "rows": self.rows,
                "order": self.order,
                "unit_rows": self.unit_rows,
                "block_rows": self.block_rows,
                **({"views": self.views} if self.views else {}),
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

    @property
    def asked(self) -> dict[str, Any]:
        """Of each field whose codec was chosen for a budget: that budget."""
        return {name: choice["asked"] for name, choice in self.budget.items()}

    @property
    def view_names(self) -> tuple[str, ...]:
        """The prefixes of the views' fields: `view01`, `view02`, ..."""
        return tuple(f"view{view:02d}" for view in range(1, self.views["count"] + 1)) if self.views else ()

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
        per_unit = np.arange(0, min(self.rows, self.unit_rows), self.block_rows, dtype=np.int64)
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
            **({"budget": self.budget} if self.budget else {}),
            **({"views": self.views} if self.views else {}),
        }

    def check_same(self, theirs: Plan, store: Path) -> None:
        """Raise StoreMismatch, naming the first difference, unless `theirs` (on disk) plans the same store.

        Tables are left out, and of budgets all but what was asked for: both are measured before the first unit, so
        whoever comes later takes what is on disk.
        """
        ours, found = (dataclasses.replace(p, tables={}, budget=p.asked).to_json() for p in (self, theirs))
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


def _by_name(plan: dict[str, Any]) -> dict[str, Any]:
    """The plan as told in a refusal: fields by name, and what people choose before what follows from it."""
    chosen = {key: plan[key] for key in ("source", "order", "container", "teacher")}
    return {
        **chosen,
        **({"views": plan["views"]} if "views" in plan else {}),
        "fields": {f["name"]: f for f in plan["fields"]},
        **{k: v for k, v in plan.items() if k != "fields"},
    }
