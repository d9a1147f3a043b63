"""`kdcache run`: everything that a recipe names."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from .numbers import numbers
from .options import as_json, command_line, jobs, open_recipe, out, overrides, recipe_argument
from .progress import Bars
from .table import print_results

__all__ = ["run", "run_and_print"]


@click.command()
@recipe_argument
@out("The run's folder.")
@overrides
@jobs
@as_json
def run(recipe: str, out: Path, settings: tuple[str, ...], jobs: int | None, as_json: bool) -> None:
    """Run a whole recipe: stores, teacher, dump, baselines, students over their seeds, table and report.

    Stages that are done are skipped, interrupted ones go on, so the same command may be given again at any time.

    \b
    Example: kdcache run fashion-mnist-few-labels --out runs/few-labels
    """
    run_and_print(recipe, out, settings, jobs, as_json)


def run_and_print(recipe: str, out: Path, settings: tuple[str, ...], jobs: int | None, as_json: bool) -> None:
    """Run a recipe, show how it goes, print its table or its results.json."""
    loaded = open_recipe(recipe, settings)
    from kdcache.recipe import run_recipe

    with Bars() as bars:
        results = run_recipe(loaded, out, _Watch(bars), jobs=jobs, command=command_line())
    if as_json:
        click.echo(json.dumps(results))
        return
    if "students" in results:
        print_results(results, Console())
    click.echo(f"report: {out / 'report.html'}" if (out / "report.html").exists() else f"store: {out / 'inputs'}")


class _Watch:
    def __init__(self, bars: Bars) -> None:
        self._bars = bars

    def began(self, name: str) -> None:
        """Nothing to show before the stage itself says how far it is."""

    def told(self, name: str, done: int, total: int, unit: str, note: str) -> None:
        """Move the stage's bar, or print its line."""
        name = _spoken(name)
        if total:
            self._bars.tell(name, done, total, unit, note)
        else:
            self._bars.say(f"{name}: {note}")

    def ended(self, name: str, facts: dict[str, Any], skipped: bool) -> None:
        """One line a stage."""
        name = _spoken(name)
        self._bars.remove(name)
        if skipped or not facts:
            return
        words = []
        words += numbers(facts)
        if facts.get("bytes"):
            words.append(f"{facts['rows']} rows, {facts['bytes'] / 1e6:.1f} MB")
        if facts.get("seconds"):
            words.append(f"{facts['seconds']:.1f} s")
        self._bars.say(f"{name}: {', '.join(words) or 'done'}")


def _spoken(name: str) -> str:
    """A recipe's only student has no name of its own."""
    return name.removeprefix("student ") if name.startswith("student student ") else name
