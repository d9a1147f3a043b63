"""Everything of a recipe that can fail before hours of work: names, shapes, codecs, objectives, on blank networks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kdcache.config import Recipe
from kdcache.errors import UsageError
from kdcache.recipe.watch import Report
from kdcache.recipe_file import Student

__all__ = ["check_recipe"]


def check_recipe(report: Report, recipe: Recipe, students: Mapping[str, Student]) -> dict[str, Any]:
    """Open the sources and build each network once; raises what the run itself would raise later."""
    from kdcache.models import InputSpec, build_model
    from kdcache.objectives import compose
    from kdcache.sources import open_source
    from kdcache.student.module import tap_shapes
    from kdcache.teacher.frozen import FrozenTeacher, load_teacher
    from kdcache.teacher.planning import inputs_plan, teacher_plan

    source = open_source(recipe.source)
    if recipe.eval_source:
        other = open_source(recipe.eval_source)
        if other.arrays["input"] != source.arrays["input"]:
            raise UsageError(
                f"eval_source: its inputs are {other.arrays['input']}, those of source are {source.arrays['input']}; "
                "a network fitted on one cannot be evaluated on the other"
            )
    config = recipe.teacher
    assert config, "only called for a recipe with a teacher"
    array, classes = source.arrays["input"], source.classes
    if classes is None:
        raise UsageError("source: it has no labels, so nobody knows how many classes the teacher tells apart")
    if config.fit:
        blank = build_model(config.model, config.args, input=array, outputs=classes)
        teacher = FrozenTeacher(blank, InputSpec(), config, classes)
    else:
        teacher = load_teacher(config, array, classes, InputSpec())
    plan = teacher_plan(inputs_plan(recipe, source), recipe, source, teacher)
    fields = {field.name: field for field in plan.fields}
    for name, student in students.items():
        try:
            objective = compose(student.objective, fields, classes)
            network = build_model(student.model, student.args, input=array, outputs=classes)
            objective.adapters(tap_shapes(network, objective.taps, array))
        except UsageError as error:
            raise UsageError(f"student {name}: {error}") from error
    return {}
