"""`kdcache dump`: stage one."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import click

from .options import as_json, folder, one_store, open_recipe, out, overrides, recipe_argument, store_name
from .progress import Bars

__all__ = ["dump"]


@click.command()
@recipe_argument
@out("The store's folder; one that was begun is gone on with.")
@overrides
@store_name("Which of the recipe's [stores], where it names several.")
@click.option(
    "--weights", type=click.Path(path_type=Path), help="The teacher's weights (safetensors), instead of the recipe's."
)
@click.option(
    "--like", type=folder, metavar="STORE", help="Take over this store's order and cut, so that both can be zipped."
)
@click.option("--plan-only", is_flag=True, help="Say what would be written and how long it would take; write nothing.")
@as_json
def dump(
    recipe: str,
    out: Path,
    settings: tuple[str, ...],
    store_name: str | None,
    weights: Path | None,
    like: Path | None,
    plan_only: bool,
    as_json: bool,
) -> None:
    """Run the teacher once over the source and write a store of its outputs, the inputs and the labels.

    Without a [teacher] the store holds inputs and labels alone. Killed or interrupted, the same command goes on from
    the last committed unit; several processes (torchrun, Slurm arrays) may run it on one store at once.

    \b
    Example: kdcache dump recipe.toml --out store/ --set teacher.batch_size=1024
    One of several: kdcache dump recipe.toml --store sampled --out stores/sampled/ --weights teacher.safetensors
    """
    loaded = one_store(open_recipe(recipe, settings), store_name)
    from kdcache.recipe.watch import DumpWatch
    from kdcache.teacher import dump as run_dump
    from kdcache.teacher import estimate

    if plan_only:
        _print_plan(estimate(loaded, weights=weights, like=like), loaded, as_json)
        return
    with Bars() as bars:
        watch = DumpWatch(lambda done, total, unit, note: bars.tell("dump", done, total, unit, note))
        result = run_dump(loaded, out, weights=weights, like=like, progress=watch)
    facts = {
        "store": str(out),
        "rows": result.manifest.rows,
        "units": len(result.manifest.units),
        "bytes": result.manifest.data_bytes,
        "digest": result.manifest.digest,
        "rows_now": result.rows,
        "samples_per_second": round(result.rows / result.seconds, 1) if result.rows else None,
        **result.manifest.facts,
        **({"budget": result.budget} if result.budget else {}),
    }
    if as_json:
        click.echo(json.dumps(facts))
        return
    rate = f", {facts['samples_per_second']:,.0f} samples/s" if result.rows else ", all there already"
    click.echo(f"{out}: {facts['rows']} rows in {facts['units']} units, {facts['bytes'] / 1e6:.1f} MB{rate}")
    for name, found in result.manifest.facts.get("fidelity", {}).items():
        for kind, words in (("kl", "KL(teacher ‖ stored), nats"), ("squared_error", "squared error of the estimate")):
            if kind in found:
                values = ", ".join(f"{value:.2g} at T = {temperature}" for temperature, value in found[kind].items())
                click.echo(f"{name}: {found['bytes_per_row']} bytes a row, {words}: {values}")
    for name, choice in result.budget.items():
        click.echo(f"{name}: {choice['why']}")
    click.echo(f"digest {facts['digest']}")
    for name, found in result.manifest.facts.get("drift", {}).items():
        click.echo(
            f"warning: {name}: {len(found['units'])} of {facts['units']} units lose more of the teacher than unit 0, "
            f"up to {found['ratio']:.1f} times (units {', '.join(map(str, found['units'][:8]))}); "
            "are the rows shuffled, and enough to fit on?",
            err=True,
        )


def _print_plan(found: Any, recipe: Any, as_json: bool) -> None:
    plan = found.plan
    facts = {
        "rows": plan.rows,
        "units": plan.units,
        "format": plan.container["format"],
        "fields": found.field_bytes,
        "bytes_per_row": sum(found.field_bytes.values()),
        "bytes": found.total_bytes,
        "samples_per_second": round(found.samples_per_second, 1),
        "seconds": round(found.seconds, 1),
        "hours": round(found.seconds / 3600, 4),
        "bytes_per_second": round(found.total_bytes / found.seconds),
    }
    pays = _pays(recipe, plan.rows, found.seconds) if plan.teacher else {}
    facts |= pays
    if plan.budget:
        facts["budget"] = plan.budget
    if as_json:
        click.echo(json.dumps(facts))
        return
    click.echo(f"{plan.rows} rows in {plan.units} units of {plan.unit_rows}, {plan.container['format']}")
    for name, size in found.field_bytes.items():
        click.echo(f"  {name:<24} {size:>10} bytes a row")
    for name, choice in plan.budget.items():
        click.echo(f"  {name}: {choice['why']}")
    click.echo(
        f"{found.total_bytes / 1e6:.1f} MB before compression, written at {facts['bytes_per_second'] / 1e6:.1f} MB/s"
    )
    click.echo(
        f"about {found.seconds:.0f} s ({found.seconds / 3600:.2g} h) at {found.samples_per_second:,.0f} samples/s "
        "(measured on a few batches)"
    )
    if pays:
        students = pays["paid_for_after_students"]
        click.echo(
            f"a teacher inside the training loop would answer {pays['teacher_passes_per_student']:.1f} times as many "
            f"images for each student, {pays['teacher_seconds_per_student']:.0f} s: the dump has paid for itself after "
            f"{students} student{'s' if students > 1 else ''}"
        )


def _pays(recipe: Any, rows: int, seconds: float) -> dict[str, Any]:
    """What the teacher would cost each student inside its training loop, and when the dump is the cheaper one."""
    from kdcache.student.rows import DEFAULT_EPOCHS

    train = recipe.train
    passes = train.steps * train.batch_size / rows if train.steps else train.epochs or DEFAULT_EPOCHS
    return {
        "teacher_passes_per_student": round(passes, 3),
        "teacher_seconds_per_student": round(passes * seconds, 1),
        "paid_for_after_students": math.ceil(1 / passes),
    }
