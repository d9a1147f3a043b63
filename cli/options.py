"""Arguments and options that several commands share, so that one flag means one thing everywhere."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from kdcache.config import Recipe
from kdcache.errors import UsageError
from kdcache.near_misses import near_misses
from kdcache.recipe_file import load_recipe
from kdcache.recipe_students import store_recipes

from .recipes import find_recipe

__all__ = [
    "as_json",
    "command_line",
    "folder",
    "jobs",
    "one_store",
    "open_recipe",
    "out",
    "overrides",
    "recipe_argument",
    "store_argument",
    "store_name",
]

F = TypeVar("F", bound=Callable[..., Any])
folder = click.Path(path_type=Path, file_okay=False)


def recipe_argument(function: F) -> F:
    """RECIPE: a TOML file, or the name of one that `kdcache recipes` lists."""
    return click.argument("recipe", metavar="RECIPE.toml")(function)


def store_argument(function: F) -> F:
    """STORE: the folder of a store."""
    return click.argument("store", type=folder)(function)


def out(what: str) -> Callable[[F], F]:
    """--out, required."""
    return click.option("--out", type=folder, required=True, metavar="DIR", help=what)


def overrides(function: F) -> F:
    """--set, repeatable."""
    text = "Change a setting of the recipe; the value is TOML."
    return click.option("--set", "settings", multiple=True, metavar="KEY.PATH=VALUE", help=text)(function)


def as_json(function: F) -> F:
    """--json."""
    return click.option("--json", "as_json", is_flag=True, help="Print facts as JSON.")(function)


def store_name(what: str) -> Callable[[F], F]:
    """--store NAME: one of the recipe's [stores]."""
    return click.option("--store", "store_name", metavar="NAME", help=what)


def jobs(function: F) -> F:
    """--jobs."""
    text = "Stages run at once (default: one on a GPU, else one for each core)."
    return click.option("--jobs", type=click.IntRange(1), metavar="N", help=text)(function)


def open_recipe(recipe: str, settings: tuple[str, ...] = ()) -> Recipe:
    """The checked recipe. Its folder is searched, last, for modules that it names as package.module:factory."""
    path = find_recipe(recipe)
    sys.path.append(str(path.absolute().parent))
    return load_recipe(path, settings)


def one_store(recipe: Recipe, name: str | None) -> Recipe:
    """The recipe that dumps one store: that of [stores] which --store names, or the recipe itself if it has just one.

    UsageError with the names, where one of several must be chosen.
    """
    stores = store_recipes(recipe)
    if name in stores:
        return stores[name]
    if not recipe.stores:
        raise UsageError(f"--store {name}: the recipe has no [stores], so there is just one; leave --store out")
    if name is None:
        raise UsageError(
            f"the recipe names {len(stores)} stores: choose one with --store, of {', '.join(recipe.stores)}"
        )
    raise UsageError(f"--store {name}: is none of the recipe's [stores]; {near_misses(name, recipe.stores)}")


def command_line() -> str:
    """The command as it was typed, for the records."""
    return " ".join(["kdcache", *sys.argv[1:]])
