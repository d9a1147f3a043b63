"""`kdcache info`, `verify` and `convert`: what a store is, whether it is sound, and the same in the other format."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from kdcache.store.guard import safe

from .options import as_json, folder, store_argument
from .progress import Bars

__all__ = ["convert", "info", "verify"]


@click.command()
@store_argument
@as_json
def info(store: Path, as_json: bool) -> None:
    """Show what a store holds, finished or not.

    \b
    Example: kdcache info store/ --json
    """
    from kdcache.store import describe

    facts = describe(store)
    if as_json:
        click.echo(json.dumps(facts))
        return
    state = "complete" if facts["complete"] else f"unfinished: {facts['units_committed']} of {facts['units']} units"
    teacher = safe(facts["teacher"].get("model")) if facts["teacher"] else "none"
    lines = {
        "store": f"{store} ({state})",
        "source": f"{safe(facts['source']['name'])}, {facts['rows']} rows, {_classes(facts)}",
        "teacher": teacher,
        "format": f"{facts['format']}, compression {safe(facts['compression'])}, {facts['units']} units of "
        f"{facts['unit_rows']} rows, blocks of {facts['block_rows']}",
        "bytes": f"{facts['bytes']} ({facts['bytes_per_row']} a row)",
        "digest": facts["digest"] or "none yet",
        "alignment": facts["alignment"],
    }
    for key, text in lines.items():
        click.echo(f"{key:<10} {text}")
    for name, field in facts["fields"].items():
        click.echo(
            f"  {name:<22} {field['array']:<22} {safe(field['codec']):<8} {field['bytes_per_row']:>8} bytes a row"
        )
    for name, (kind, values) in _fidelity(facts).items():
        words = ", ".join(f"{value:.2g} at T = {safe(temperature)}" for temperature, value in values.items())
        said = "KL(teacher ‖ stored)" if kind == "kl" else "squared error of the estimate"
        click.echo(f"  {safe(name)}: {said} {words}{', in nats' if kind == 'kl' else ''}")
    for name, choice in facts["budget"].items():
        click.echo(f"  {safe(name)}: {safe(choice['why'], 400)}")
    for name, drift in facts["facts"].get("drift", {}).items():
        units = ", ".join(map(str, drift["units"][:8])) + (", ..." if len(drift["units"]) > 8 else "")
        click.echo(f"  {safe(name)}: loses up to {drift['ratio']:.1f} times more than on unit 0 in units {units}")


def _classes(facts: dict[str, Any]) -> str:
    classes = facts["source"]["classes"]
    return "classes not said" if classes is None else f"{classes} classes"


def _fidelity(facts: dict[str, Any]) -> dict[str, tuple[str, dict[str, float]]]:
    """By field its kind of error and this by temperature; whatever else a stranger may have put there is left out."""
    fields = facts["facts"].get("fidelity")
    found = {}
    for name, table in fields.items() if isinstance(fields, dict) else ():
        for kind in ("kl", "squared_error"):
            values = table.get(kind) if isinstance(table, dict) else None
            if isinstance(values, dict) and all(isinstance(value, float) for value in values.values()):
                found[name] = kind, values
    return found


@click.command()
@store_argument
@click.option("--deep", is_flag=True, help="Decode every block as well and compare it with its own digest.")
@as_json
def verify(store: Path, deep: bool, as_json: bool) -> None:
    """Compare every byte of a store with the digests in its manifest; exit 65 at the first difference.

    \b
    Example: kdcache verify store/ --deep
    """
    from kdcache.store import verify as check

    with Bars() as bars:
        facts = check(store, deep, lambda done, total: bars.tell("verify", done, total, "bytes"))
        if deep:
            facts["replayed_blocks"] = _replayed(store, bars)
    if as_json:
        click.echo(json.dumps(facts))
        return
    click.echo(
        f"{store}: sound; {facts['rows']} rows, {facts['units']} units, {facts['bytes']} bytes, "
        f"digest {facts['digest']}"
    )
    for name in facts["strange_files"]:
        click.echo(f"  not part of the store, not opened: {safe(name)}")


def _replayed(store: Path, bars: Bars) -> int:
    """How many blocks of views were replayed and found to be what the teacher saw."""
    from kdcache.store import open_store

    with open_store(store) as reader:
        if reader.plan.views is None:
            return 0
        from kdcache.loader.views import verify_views  # torch is loaded for stores with views alone

        return verify_views(reader, lambda done, total: bars.tell("replay", done, total, "blocks"))


@click.command()
@store_argument
@click.argument("out", type=folder)
@click.option("--format", "container", type=click.Choice(["parquet", "hdf5"]), required=True, help="What to write.")
@click.option(
    "--compression",
    type=click.Choice(["none", "lz4", "zstd", "deflate"]),
    default="none",
    show_default=True,
    help="lz4 and zstd for Parquet, deflate for HDF5.",
)
@as_json
def convert(store: Path, out: Path, container: str, compression: str, as_json: bool) -> None:
    """Write a store again in the other format: same rows, same order, same digests of columns.

    \b
    Example: kdcache convert store/ store.h5/ --format hdf5
    """
    from kdcache.errors import UsageError
    from kdcache.store import convert as rewrite

    if compression not in {"parquet": ("none", "lz4", "zstd"), "hdf5": ("none", "deflate")}[container]:
        raise UsageError(f"--compression {compression} is not for {container}")
    with Bars() as bars:
        manifest = rewrite(
            store, out, container, compression, lambda done, total: bars.tell("convert", done, total, "units")
        )
    facts = {"store": str(out), "rows": manifest.rows, "bytes": manifest.data_bytes, "digest": manifest.digest}
    click.echo(
        json.dumps(facts)
        if as_json
        else f"{out}: {manifest.rows} rows, {manifest.data_bytes} bytes, digest {manifest.digest}"
    )
