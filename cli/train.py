"""`kdcache train` and `kdcache eval`: stage two."""

from __future__ import annotations

import json
from pathlib import Path

import click

from kdcache.errors import UsageError
from kdcache.recipe_students import Student, resolve_students

from .numbers import numbers
from .options import as_json, folder, open_recipe, out, overrides, recipe_argument
from .progress import Bars

__all__ = ["evaluate", "train"]


@click.command()
@recipe_argument
@click.option(
    "--store",
    "stores",
    type=folder,
    multiple=True,
    required=True,
    metavar="STORE",
    help="A store; several aligned ones are zipped.",
)
@out("The run's folder: checkpoints, metrics.jsonl, model.safetensors, result.json.")
@overrides
@click.option("--student", "name", metavar="NAME", help="Which student, where the recipe names several.")
@click.option("--seed", type=click.IntRange(0, 2**63 - 1), help="Which seed (default: the recipe's first).")
@click.option("--baseline", is_flag=True, help="Fit the same network on the labels alone, for as many steps.")
@click.option("--eval-store", type=folder, metavar="STORE", help="Evaluate the finished student on this store.")
@click.option("--resume", is_flag=True, help="Go on with a fit that was begun in --out.")
@as_json
def train(
    recipe: str,
    stores: tuple[Path, ...],
    out: Path,
    settings: tuple[str, ...],
    name: str | None,
    seed: int | None,
    baseline: bool,
    eval_store: Path | None,
    resume: bool,
    as_json: bool,
) -> None:
    """Fit a student from a store alone; no teacher is loaded or imported.

    The stores are those of --store, also where the recipe gives the student one of its [stores] by name.

    \b
    Example: kdcache train recipe.toml --store store/ --out student/ --eval-store eval/
    """
    loaded = open_recipe(recipe, settings)
    student = _choose(resolve_students(loaded), name)
    seed = student.train.seeds[0] if seed is None else seed
    from kdcache.recipe.stages import fit_baseline, fit_student
    from kdcache.store import open_store

    if eval_store:
        open_store(eval_store).close()  # found out now, not when the fit is done

    with Bars() as bars:

        def report(done: int, total: int, unit: str, note: str) -> None:
            if total:
                bars.tell("fit", done, total, unit, note)
            else:
                bars.say(note)

        if baseline:
            facts = fit_baseline(report, student, seed, list(stores), list(stores), eval_store, out, resume)
        else:
            facts = fit_student(report, student, seed, list(stores), eval_store, out, resume)
    if as_json:
        click.echo(json.dumps({"run": str(out), "seed": seed, **facts}))
        return
    found = ", ".join(numbers(facts)) if eval_store else ""
    found = f", {found} on {eval_store}" if found else ""
    click.echo(f"{out}: {facts['steps']} steps, {facts['samples_per_second']:,.0f} samples/s{found}")


def _choose(students: dict[str, Student], name: str | None) -> Student:
    if not students:
        raise UsageError("the recipe names no student: add [student] and at least one [[objective]]")
    if name is None and len(students) > 1:
        raise UsageError(
            f"the recipe names {len(students)} students: choose one with --student, of {', '.join(students)}"
        )
    if name is not None and name not in students:
        raise UsageError(f"--student {name}: the recipe names {', '.join(students)}")
    return students[name] if name else next(iter(students.values()))


@click.command("eval")
@click.argument("run", type=folder)
@click.option("--store", type=folder, required=True, metavar="STORE", help="A store with inputs and labels.")
@click.option("--allow-code", is_flag=True, help="Build a network that the run names as package.module:factory.")
@as_json
def evaluate(run: Path, store: Path, allow_code: bool, as_json: bool) -> None:
    """Evaluate a fitted network on a store.

    \b
    Example: kdcache eval student/ --store eval/ --json
    """
    from kdcache.student import evaluate_run

    facts = evaluate_run(run, store, allow_import=allow_code)
    if as_json:
        click.echo(json.dumps({"run": str(run), **facts}))
        return
    what = "scored tokens" if "perplexity" in facts else "labelled rows"
    click.echo(f"{run}: {', '.join(numbers(facts))} over {facts['labelled']} {what} of {store}")
