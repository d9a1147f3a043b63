"""A recipe's teacher on its pilot, for `kdcache fidelity`: every codec measured, nothing written."""

from __future__ import annotations

from pathlib import Path

from kdcache.config import BudgetConfig, FieldConfig, Recipe
from kdcache.errors import UsageError
from kdcache.sources import open_source
from kdcache.teacher.budget import Measured, Progress, measure
from kdcache.teacher.frozen import load_teacher
from kdcache.teacher.planning import input_spec_of, inputs_plan

__all__ = ["survey"]


def survey(
    recipe: Recipe,
    field: str,
    budget: BudgetConfig,
    bounded: bool,
    weights: Path | None = None,
    rows: int = 4096,
    progress: Progress | None = None,
) -> Measured:
    """The trials of a field's codecs at the budget's temperatures.

    `bounded`: the budget's bounds are meant, so sizes between those on the ladder are tried as well. Without them all
    codecs are tried; the recipe's own `codec` and keys restrict them only beside a budget of its own. UsageError.
    """
    if recipe.teacher is None:
        raise UsageError("fidelity: the recipe has no [teacher] whose outputs could be measured; add one")
    known = ["logits", *recipe.teacher.outputs, *recipe.teacher.taps]
    if field not in known:
        raise UsageError(f"--field {field}: the teacher gives {', '.join(known)}")
    source = open_source(recipe.source)
    plan = inputs_plan(recipe, source)
    spec = input_spec_of(plan)
    teacher = load_teacher(recipe.teacher, source.arrays, source.classes, spec, weights)
    config = recipe.fields.get(field)
    restricted = config if config is not None and config.budget is not None else FieldConfig()
    config = restricted.model_copy(update={"budget": budget})
    return measure(source, teacher, plan, field, config, rows, progress, between=bounded)
