"""A field's codec by what it may cost: measured on a pilot of the teacher itself, the smallest that is good enough."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdcache.codecs import CODECS
from kdcache.config import BudgetConfig, FieldConfig, Recipe
from kdcache.errors import StoreMismatch, UsageError
from kdcache.sources import Source
from kdcache.store import Plan
from kdcache.store.guard import safe
from kdcache.teacher.frozen import FrozenTeacher
from kdcache.teacher.pilot import PILOT_ROWS, pilot
from kdcache.teacher.trials import Sample, Trial, attempt, candidates, refine, sample_of, try_codecs

__all__ = ["Choice", "Measured", "Progress", "asked_of", "choices", "choose", "measure"]

Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class Choice:
    """A codec that was chosen for a field, and what the plan says of it: `asked`, `why`, `measured`."""

    codec: str
    configuration: dict[str, Any]
    facts: dict[str, Any]


@dataclass(frozen=True)
class Measured:
    """All trials of a field's pilot, and the rows that they were fitted and judged on."""

    trials: list[Trial]
    fitted: int
    held_out: int
    asked: dict[str, Any] = field(default_factory=dict)


def asked_of(config: FieldConfig) -> dict[str, Any]:
    """What a recipe asks of a field by its budget: what a choice depends on besides the teacher and the rows."""
    assert config.budget is not None, "only called for a field with a budget"
    found = config.budget.model_dump(mode="json", exclude_none=True)
    if config.codec:
        found["codec"] = config.codec
    if keys := config.model_dump(mode="json", include=set(config.configuration()), exclude_none=True):
        found["keys"] = keys
    return found


def choices(
    recipe: Recipe, source: Source, teacher: FrozenTeacher, plan: Plan, found: Plan | None, out: Path | None = None
) -> dict[str, Choice]:
    """The choice for every field with a budget; taken over from `found`, the plan on disk, where it was asked the same.

    Raises StoreMismatch, before the teacher runs, if that plan was asked something else; UsageError if no codec meets
    the budget.
    """
    made = {}
    for name, config in recipe.fields.items():
        if config.budget is None:
            continue
        asked = asked_of(config)
        if found is None:
            measured = measure(source, teacher, plan, name, config)
            made[name] = _choice(choose(measured, config.budget, name), measured, config.budget, asked)
            continue
        theirs = found.budget.get(name)
        if theirs is None or theirs["asked"] != asked:
            raise StoreMismatch(
                f"{out}: holds a store with another plan: fields.{name}.budget is "
                f"{safe(theirs['asked']) if theirs else 'not given'} there and {asked} in this recipe; choose another "
                "--out, or delete that store"
            )
        stored = next(f for f in found.fields if f.name == name)
        if stored.codec not in CODECS:
            raise StoreMismatch(f"{out}: {name} is stored with codec {safe(stored.codec)}, which is not known here")
        made[name] = Choice(stored.codec, stored.configuration, theirs)
    return made


def measure(
    source: Source,
    teacher: FrozenTeacher,
    plan: Plan,
    name: str,
    config: FieldConfig,
    rows: int = PILOT_ROWS,
    progress: Progress | None = None,
    between: bool = True,
) -> Measured:
    """Run the teacher on the first rows of the plan and try the codecs on its logits.

    `between`: near the budget, sizes off the ladder too. `progress(done, total, unit)` counts samples, then codecs.
    UsageError for a field that is no logits.
    """
    if name != "logits":
        raise UsageError(f"fields.{name}: a budget is for logits, KL and gradients say nothing of other fields")
    budget = config.budget
    assert budget is not None, "only called for a field with a budget"
    tell = progress or _silent
    ids = _first(source, plan, rows)
    size = min(teacher.config.batch_size, plan.unit_rows)
    outputs, keys = pilot(source, teacher, ids, size, [name], rows, lambda done, total: tell(done, total, "samples"))
    sample = sample_of(outputs[name], keys)
    found = candidates(outputs[name].shape[1], config.codec, config.configuration(), budget.max_bytes)
    temperatures = budget.at_temperature
    try:
        trials = try_codecs(found, sample, temperatures, lambda done, total: tell(done, total, "codecs"))
    except UsageError as error:
        raise UsageError(f"fields.{name}: {error}") from error
    if between and budget.max_kl is not None:
        trials += refine(trials, lambda trial: _meets(trial, budget), _run(sample, temperatures))
    return Measured(trials, len(sample.fitted), len(sample.held_out))


def choose(measured: Measured, budget: BudgetConfig, name: str) -> Trial:
    """The smallest that keeps within max_kl at every temperature, else the nearest to the teacher within max_bytes.

    UsageError if there is none; it says what comes nearest.
    """
    small = [t for t in measured.trials if budget.max_bytes is None or t.bytes <= budget.max_bytes]
    if budget.max_kl is not None:
        if good := [t for t in small if _meets(t, budget)]:
            return min(good, key=lambda t: (t.bytes, t.worst, t.name))
        raise UsageError(f"fields.{name}: {_nearest(measured.trials, small, budget)}")
    if small:
        return min(small, key=lambda t: (t.worst, t.bytes, t.name))
    least = min(measured.trials, key=lambda t: (t.bytes, t.worst, t.name))
    raise UsageError(
        f"fields.{name}: no codec takes at most {budget.max_bytes} bytes a row; the smallest is {least.name} with "
        f"{least.bytes} bytes: raise max_bytes"
    )


def _meets(trial: Trial, budget: BudgetConfig) -> bool:
    fits = budget.max_bytes is None or trial.bytes <= budget.max_bytes
    return fits and trial.kind == "kl" and budget.max_kl is not None and trial.worst <= budget.max_kl


def _nearest(trials: Sequence[Trial], small: Sequence[Trial], budget: BudgetConfig) -> str:
    compared = [t for t in trials if t.kind == "kl"]
    if not compared:
        return (
            "max_kl says nothing of codecs that estimate at random (sampled, threshold): give max_bytes, "
            "or leave out codec"
        )
    within = f" within {budget.max_bytes} bytes a row" if budget.max_bytes else ""
    said = f"no codec keeps KL(teacher ‖ decoded) at or below {budget.max_kl:g} nats{within}; "
    inside = [t for t in small if t.kind == "kl"]
    nearest = min(
        inside or compared, key=lambda t: (t.worst, t.bytes, t.name) if inside else (t.bytes, t.worst, t.name)
    )
    at = max(nearest.error, key=lambda temperature: nearest.error[temperature])
    said += f"nearest is {nearest.name} with {nearest.worst:.3g} nats at T = {at} in {nearest.bytes} bytes"
    enough = [t for t in compared if budget.max_kl is not None and t.worst <= budget.max_kl]
    if enough:
        least = min(enough, key=lambda t: (t.bytes, t.worst, t.name))
        return f"{said}, and {least.name} would meet it in {least.bytes} bytes: raise max_kl or max_bytes"
    return f"{said}: raise max_kl" + (
        ", or leave out codec and its keys" if len({t.codec for t in trials}) == 1 else ""
    )


def _choice(trial: Trial, measured: Measured, budget: BudgetConfig, asked: dict[str, Any]) -> Choice:
    temperatures = ", ".join(f"{t:g}" for t in budget.at_temperature)
    among = f"{len(measured.trials)} configurations"
    if budget.max_kl is not None:
        bound = f" and at most {budget.max_bytes} bytes a row" if budget.max_bytes else ""
        limit = f"a KL of at most {budget.max_kl:g} nats at T = {temperatures}{bound}"
        why = f"{trial.name} is the smallest of {among} with {limit}"
    else:
        what = "KL at T = " + temperatures if trial.kind == "kl" else "squared error"
        why = f"{trial.name} has the least {what} of {among} within {budget.max_bytes} bytes a row"
    facts = {
        "asked": asked,
        "why": f"{why}, on {measured.held_out} rows that nothing was fitted on",
        "measured": {
            trial.kind: trial.error,
            "cosine": trial.cosine,
            "norm_ratio": trial.norm_ratio,
            "bytes_per_row": trial.bytes,
            "rows_fitted": measured.fitted,
            "rows_held_out": measured.held_out,
            "tried": len(measured.trials),
        },
    }
    return Choice(trial.codec, trial.asked, facts)


def _run(sample: Sample, temperatures: Sequence[float]) -> Callable[[str, dict[str, Any]], Trial]:
    return lambda codec, keys: attempt(codec, keys, sample, temperatures)


def _first(source: Source, plan: Plan, rows: int) -> NDArray[np.int64]:
    ids: NDArray[np.int64] = source.ids()[plan.permutation()[:rows]]
    return ids


def _silent(done: int, total: int, unit: str) -> None: ...
