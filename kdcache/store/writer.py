"""`StoreWriter`: what a dump needs of a store on disk."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from kdcache.fingerprint import sha256
from kdcache.store import commit
from kdcache.store.manifest import Manifest, Record
from kdcache.store.plan import Plan
from kdcache.store.tables import Table, pack_table, read_table

__all__ = ["StoreWriter"]


class StoreWriter:
    """Writes the units of one plan into a folder, beside any number of other writers of the same plan.

    `tables`: for each field whose codec was fitted, its arrays by name. A store that is already there is gone on with
    if it has the same plan (then its tables are used, see `plan`), and refused with StoreMismatch if it has another.
    """

    def __init__(self, path: Path, plan: Plan, tables: Mapping[str, Table] | None = None) -> None:
        self.path = path
        packed = {field: pack_table(arrays) for field, arrays in (tables or {}).items()}
        plan = dataclasses.replace(plan, tables={field: sha256([data]) for field, data in packed.items()})
        self.plan = commit.start(path, plan, packed)

    def table(self, field: str) -> Table:
        """The arrays of a field's codec that are in force; {} where it needs none."""
        return read_table(self.path, self.plan, field)

    def missing(self) -> set[int]:
        """The units that nobody has committed yet."""
        units = range(self.plan.units)
        return set(units) - commit.committed(self.path, units)

    def work(self, first: int = 0) -> Iterator[int]:
        """The units that this process should write, one at a time, until none is missing.

        Units that another writer has claimed come last, so that a claim of a dead one costs nothing but the order.
        `first` is where to begin (ranks of one job begin apart).
        """
        done: set[int] = set()
        while missing := self.missing() - done:
            free = missing - commit.claimed(self.path) or missing
            unit = min(free, key=lambda u: (u - first) % self.plan.units)
            commit.claim(self.path, unit)
            done.add(unit)
            yield unit

    def write(
        self,
        unit: int,
        columns: Mapping[str, NDArray[Any]],
        facts: Mapping[str, Any] | None = None,
        pixels: Mapping[str, list[str]] | None = None,
    ) -> Record:
        """Commit one unit; see `commit.commit_unit`."""
        return commit.commit_unit(self.path, self.plan, unit, columns, facts, pixels)

    def finish(self) -> Manifest | None:
        """Publish the manifest and the card if every unit is committed; None if some are still missing."""
        return commit.finish(self.path, self.plan)
