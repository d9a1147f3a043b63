"""Everything of a recipe that can fail before hours of work: names, shapes, codecs, objectives, on blank networks."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

from kdcache.config import Recipe
from kdcache.errors import UsageError
from kdcache.recipe.watch import Report
from kdcache.recipe_file import Student, store_recipes

if TYPE_CHECKING:
    from kdcache.sources import Source

__all__ = ["check_recipe"]


def check_recipe(report: Report, recipe: Recipe, students: Mapping[str, Student]) -> dict[str, Any]:
    """Open the sources and build each network once; raises what the run itself would raise later.

    {"positions": how many targets a row has that is a sequence, else None}.
    """
    from kdcache.models import InputSpec, build_model
    from kdcache.objectives import compose
    from kdcache.sources import open_source
    from kdcache.student.job import check_augment
    from kdcache.student.language import check_language_model
    from kdcache.student.memory import check_memory
    from kdcache.student.module import tap_shapes
    from kdcache.teacher.frozen import FrozenTeacher, load_teacher
    from kdcache.teacher.planning import inputs_plan, teacher_plan

    source = open_source(recipe.source)
    if recipe.eval_source:
        _check_evaluation(recipe, source)
    config = recipe.teacher
    assert config, "only called for a recipe with a teacher"
    array, classes = source.arrays["input"], source.classes
    if classes is None:
        raise UsageError("source: it has no labels, so nobody knows how many classes the teacher tells apart")
    label = source.arrays["label"].shape if "label" in source.arrays else ()
    positions = label[0] if label else None
    if config.fit:
        blank = build_model(config.model, config.args, input=array, outputs=classes)
        if positions is not None:
            check_language_model(blank, config.model, array, positions, classes)
        teacher = FrozenTeacher(blank, InputSpec(), config, classes)
    else:
        teacher = load_teacher(config, array, classes, InputSpec())
    plans, stored = {}, {}
    variants = store_recipes(recipe)
    for store, variant in variants.items():
        try:
            plan = plans[store] = teacher_plan(inputs_plan(variant, source), variant, source, teacher)
        except UsageError as error:
            raise UsageError(f"stores.{store}: {error}" if store else str(error)) from error
        stored[store] = {field.name: field for field in plan.fields}
    for name, student in students.items():
        try:
            objective = compose(student.objective, stored[student.store], classes)
            network = build_model(student.model, student.args, input=array, outputs=classes)
            if positions is not None:
                check_language_model(network, student.model, array, positions, classes)
                check_augment(student.train)
            objective.adapters(tap_shapes(network, objective.taps, array))
            if not objective.needs_labels_only:  # of the labelled rows alone there may be few
                check_memory(
                    plans[student.store], _read(variants[student.store], objective.fields, positions), student.train
                )
        except UsageError as error:
            raise UsageError(f"student {name}: {error}") from error
    return {"positions": positions}


def _read(recipe: Recipe, fields: Collection[str], positions: int | None) -> set[str]:
    """What a fit reads of a store; without fields that have a budget, whose width is not known yet."""
    sequences = () if positions is None else ("label", "segment")
    undecided = {name for name, config in recipe.fields.items() if config.budget is not None}
    return {"id", "input", *sequences, *fields} - undecided


def _check_evaluation(recipe: Recipe, source: Source) -> None:
    from kdcache.sources import check_same_vocabulary, open_source

    assert recipe.eval_source, "there is one"
    other = open_source(recipe.eval_source)
    sequences = any(one.arrays["label"].shape for one in (source, other) if "label" in one.arrays)
    for name in ("input", "label") if sequences else ("input",):
        if other.arrays.get(name) != source.arrays.get(name):
            raise UsageError(
                f"eval_source: its {name}s are {other.arrays.get(name)}, those of source are "
                f"{source.arrays.get(name)}; a network fitted on one cannot be evaluated on the other"
            )
    ours, theirs = (getattr(one, "extra", {}).get("tokenizer") for one in (source, other))
    check_same_vocabulary(ours, theirs, "source", "eval_source")
