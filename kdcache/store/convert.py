"""`convert`: the same rows, columns and digests of columns in the other container."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

from kdcache.errors import UsageError
from kdcache.store.manifest import Manifest
from kdcache.store.plan import COMPRESSIONS
from kdcache.store.reader import open_store
from kdcache.store.writer import StoreWriter

__all__ = ["convert"]


def convert(
    path: Path, out: Path, container: str, compression: str = "none", progress: Callable[[int, int], None] | None = None
) -> Manifest:
    """Write a finished store again as `container` ("parquet" or "hdf5"); a second call goes on where the first stopped.

    Every block is verified as it is read. Converting back gives the first store's shards again, byte for byte.
    """
    if compression not in COMPRESSIONS.get(container, ()):
        raise UsageError(f"container {container!r} with compression {compression!r}; take one of {COMPRESSIONS}")
    with open_store(path) as store:
        plan = dataclasses.replace(store.plan, container={"format": container, "compression": compression})
        writer = StoreWriter(out, plan, {field: store.table(field) for field in plan.tables})
        for unit in writer.work():
            first, last = plan.unit_range(unit)
            columns = {name: store.read_column(name, first, last) for name in plan.columns}
            writer.write(unit, columns, store.manifest.units[unit].facts, store.pixels(unit))
            if progress:
                progress(plan.units - len(writer.missing()), plan.units)
        manifest = writer.finish()
        assert manifest is not None, "every unit was written"
        return manifest
