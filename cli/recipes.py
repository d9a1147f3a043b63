"""`kdcache recipes`: the recipes that are installed with kdcache."""

from __future__ import annotations

import json
from importlib.resources import files
from pathlib import Path

import click

from kdcache.errors import UsageError
from kdcache.near_misses import near_misses

__all__ = ["find_recipe", "recipes"]


def _installed() -> dict[str, Path]:
    folder = Path(str(files("kdcache_data"))) / "recipes"
    return {path.stem: path for path in sorted(folder.glob("*.toml"))}


def find_recipe(name: str) -> Path:
    """The file of that path, else the installed recipe of that name."""
    path = Path(name)
    if path.is_file():
        return path
    known = _installed()
    if name.removesuffix(".toml") in known:
        return known[name.removesuffix(".toml")]
    hint = near_misses(name, known)
    raise UsageError(f"{name}: there is no such recipe file, and no installed recipe of that name; {hint}")


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print facts as JSON.")
@click.option("--keys", is_flag=True, help="List every key that a recipe may have.")
@click.argument("name", required=False)
def recipes(name: str | None, keys: bool, as_json: bool) -> None:
    """List the installed recipes, or print one to start your own from.

    \b
    Example: kdcache recipes fashion-mnist-few-labels > mine.toml
    """
    if keys:
        from .reference import key_reference

        for line in key_reference():
            click.echo(line)
        return
    if name:
        click.echo(find_recipe(name).read_text(), nl=False)
        return
    about = {key: path.read_text().splitlines()[0].lstrip("# ") for key, path in _installed().items()}
    if as_json:
        click.echo(json.dumps({key: {"path": str(_installed()[key]), "about": line} for key, line in about.items()}))
        return
    for key, line in about.items():
        click.echo(f"{key:<28} {line}")
