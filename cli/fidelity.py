"""`kdcache fidelity`: which codec for this teacher, measured."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import click

from kdcache.errors import UsageError

from .options import as_json, one_store, open_recipe, overrides, recipe_argument, store_name
from .progress import Bars
from .table import aligned

__all__ = ["fidelity"]


@click.command()
@recipe_argument
@overrides
@store_name("Of which of the recipe's [stores] the budget is (default: that of [fields]).")
@click.option(
    "--weights", type=click.Path(path_type=Path), help="The teacher's weights (safetensors), instead of the recipe's."
)
@click.option("--field", default="logits", show_default=True, help="Which of the teacher's fields.")
@click.option(
    "--max-kl", type=click.FloatRange(0, min_open=True), metavar="X", help="Nats a row, at every temperature."
)
@click.option("--max-bytes", type=click.IntRange(1), metavar="N", help="Bytes a row (of sequences, a position).")
@click.option(
    "--at-temperature",
    "temperatures",
    type=click.FloatRange(0, 1000, min_open=True),
    multiple=True,
    metavar="T",
    help="Where codecs are compared; may be given again (default: the recipe's budget, else 1, 2 and 4).",
)
@click.option(
    "--rows", type=click.IntRange(8), default=4096, show_default=True, help="Of the pilot, from the plan's first."
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    metavar="DIR|FILE",
    help="Draw the plot: an .svg or .png file, or a folder.",
)
@as_json
def fidelity(
    recipe: str,
    settings: tuple[str, ...],
    store_name: str | None,
    weights: Path | None,
    field: str,
    max_kl: float | None,
    max_bytes: int | None,
    temperatures: tuple[float, ...],
    rows: int,
    out: Path | None,
    as_json: bool,
) -> None:
    """Run the teacher on a few rows, try the codecs on them and say what each keeps and costs.

    The KL and the gradients are of rows that nothing was fitted on; the gradients are those of a stand-in for a student
    that is half-way to its teacher. In the table * marks the Pareto front and > what --max-kl and --max-bytes (or the
    recipe's budget) choose. Exit 64 if no codec meets them.

    \b
    Example: kdcache fidelity recipe.toml --max-kl 1e-3 --at-temperature 1 --at-temperature 4 --out tradeoff.svg
    """
    _check_finite("--max-kl", max_kl)
    for temperature in temperatures:
        _check_finite("--at-temperature", temperature)
    loaded = open_recipe(recipe, settings)
    loaded = one_store(loaded, store_name) if store_name else loaded
    target = _target(out)
    from kdcache.config import BudgetConfig, FieldConfig
    from kdcache.teacher.budget import choose
    from kdcache.teacher.survey import survey
    from kdcache.teacher.trials import pareto

    config = loaded.fields.get(field, FieldConfig())
    asked = config.budget.model_dump(exclude_none=True) if config.budget else {}
    asked |= {"max_kl": max_kl} if max_kl else {}
    asked |= {"max_bytes": max_bytes} if max_bytes else {}
    asked |= {"at_temperature": temperatures} if temperatures else {}
    wanted = asked.keys() & {"max_kl", "max_bytes"}
    budget = BudgetConfig(**{**asked, **({} if wanted else {"max_kl": 1.0})})
    with Bars() as bars:
        measured = survey(
            loaded, field, budget, bool(wanted), weights, rows,
            lambda done, total, unit: bars.tell("fidelity" if unit == "samples" else "codecs", done, total, unit),
        )  # fmt: skip
    front = {trial.name for trial in pareto(measured.trials)}
    chosen, refusal = None, None
    if wanted:
        try:
            chosen = choose(measured, budget, field)
        except UsageError as error:
            refusal = error
    trials = sorted(measured.trials, key=lambda t: (t.bytes, t.worst, t.name))
    facts: dict[str, Any] = {
        "field": field,
        "rows_fitted": measured.fitted,
        "rows_held_out": measured.held_out,
        "budget": budget.model_dump(mode="json", exclude_none=True) if wanted else None,
        "chosen": chosen.name if chosen else None,
        "trials": [{**trial.to_json(), "pareto": trial.name in front} for trial in trials],
    }
    if target:
        _draw(target, facts)
    if as_json:
        click.echo(json.dumps(facts))
    else:
        _print(facts, target)
        if chosen:
            click.echo(f"chosen: {chosen.name}, {chosen.bytes} bytes a row; in the recipe:")
            click.echo(f"  [fields.{field}]\n  codec = {json.dumps(chosen.codec)}")
            for key, value in chosen.asked.items():
                click.echo(f"  {key} = {json.dumps(value)}")
    if refusal:
        raise refusal


def _check_finite(option: str, value: float | None) -> None:
    """Infinity and NaN are in every range that the command line can state."""
    if value is not None and not math.isfinite(value):
        raise UsageError(f"{option} {value}: give a finite number above 0")


def _target(out: Path | None) -> Path | None:
    """The plot's file; refused before the work if it is of another kind."""
    if out is None:
        return None
    path = out / "fidelity.svg" if out.is_dir() or not out.suffix else out
    if path.suffix not in (".svg", ".png"):
        raise UsageError(f"--out {out}: the plot is an .svg or .png file, or give a folder")
    return path


def _draw(path: Path, facts: dict[str, Any]) -> None:
    from kdcache.files import disk_errors
    from kdcache.report.tradeoff import tradeoff

    drawing = tradeoff(facts["trials"], facts["chosen"], path.suffix[1:])
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(drawing)


def _print(facts: dict[str, Any], target: Path | None) -> None:
    temperatures = list(dict.fromkeys(t for trial in facts["trials"] for t in trial["error"]))
    kinds = {trial["kind"] for trial in facts["trials"]}
    words = "KL" if kinds == {"kl"} else "error"
    head = ["", "codec", "bytes", *(f"{words} T={t}" for t in temperatures)]
    head += [f"cos T={t}" for t in temperatures] + [f"norm T={t}" for t in temperatures]
    lines = []
    for trial in facts["trials"]:
        mark = (">" if trial["name"] == facts["chosen"] else " ") + ("*" if trial["pareto"] else " ")
        cells = [f"{trial['error'][t]:.2e}" if t in trial["error"] else "-" for t in temperatures]
        for key in ("cosine", "norm_ratio"):
            cells += [f"{trial[key][t]:.4f}" if t in trial[key] else "-" for t in temperatures]
        lines.append([mark, trial["name"], str(trial["bytes"]), *cells])
    for line in aligned([head, *lines]):
        click.echo(line)
    click.echo(
        f"{facts['field']}: fitted on {facts['rows_fitted']} rows, measured on {facts['rows_held_out']} others; "
        f"{'KL(teacher ‖ decoded) in nats' if words == 'KL' else 'KL in nats, or squared error of estimates'}, "
        "cosine and norm ratio of a student's gradients"
    )
    if target:
        click.echo(f"drawn in {target}")
