"""The README.md beside a finished store: what it is and how to read it. Not part of the store's identity."""

from __future__ import annotations

import contextlib
from pathlib import Path

from kdcache.files import disk_errors, replace, write_temporary
from kdcache.store.guard import safe
from kdcache.store.manifest import Manifest
from kdcache.store.plan import Plan

__all__ = ["write_card"]

_READ = """\
    from kdcache import StreamingLoader, open_store
    with open_store("{name}") as store:
        for batch in StreamingLoader(store, batch_size=256):
            ...                      # batch["input"], batch["logits"], batch["label"], batch["id"]
"""


def write_card(store: Path, plan: Plan, manifest: Manifest, scratch: Path) -> None:
    """Write the card, unless somebody has already put a README.md there (it may be edited by hand)."""
    path = store / "README.md"
    if path.exists():
        return
    teacher = f"`{safe(plan.teacher.get('model'))}`" if plan.teacher else "none: inputs and labels only"
    fields = "\n".join(f"| `{f.name}` | {f.array} | {f.codec} | {f.width} |" for f in plan.fields)
    chosen = "".join(f"\n`{name}`: {safe(choice['why'], 400)}.\n" for name, choice in plan.budget.items())
    text = f"""\
# {safe(plan.source["name"])}: soft labels

{plan.rows} rows in {plan.units} {plan.container["format"]} shards, {manifest.data_bytes} bytes. Teacher: {teacher}.
Digest of the store (SHA-256 of manifest.json): `{manifest.digest}`.

| field | one sample | codec | bytes per row |
|---|---|---|---|
{fields}
{chosen}
{_READ.format(name=store.name)}
Check it with `kdcache verify {store.name}`. The layout is described in FORMAT.md of kdcache; a Parquet shard is read by
any Parquet tool, each column's dtype and shape standing in its field metadata.
"""
    with disk_errors(path), contextlib.suppress(FileNotFoundError):  # whoever swept `scratch` has written the card
        replace(write_temporary(scratch, text.encode()), path)
