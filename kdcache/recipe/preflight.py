"""Everything of a recipe that can fail before hours of work: names, shapes, codecs, objectives, on blank networks."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from kdcache.arrays import Array, named_arrays, outputs_for, sequence_positions
from kdcache.config import ObjectiveConfig, Recipe, TrainConfig
from kdcache.errors import UsageError
from kdcache.recipe.watch import Report
from kdcache.recipe_students import HARD_LABELS, Student, store_recipes
from kdcache.store import StoredField, plain_field

if TYPE_CHECKING:
    from torch import nn

    from kdcache.sources import Source
    from kdcache.teacher.frozen import FrozenTeacher
    from kdcache.views import ViewsSpec

__all__ = ["check_recipe"]

Fields = Mapping[str, StoredField]


def check_recipe(report: Report, recipe: Recipe, students: Mapping[str, Student]) -> dict[str, Any]:
    """Open the sources and build each network once; raises what the run itself would raise later.

    {"positions": how many targets a row has that is a sequence of tokens, else None; "labelled": whether students can
    be fitted alone on the source; "classes": whether the networks are judged by one class a row}.
    """
    from kdcache.objectives import compose
    from kdcache.sources import open_source
    from kdcache.student.memory import check_memory
    from kdcache.teacher.planning import inputs_plan, teacher_plan

    source = open_source(recipe.source)
    if recipe.eval_source:
        _check_evaluation(recipe, source)
    arrays = source.arrays
    positions = sequence_positions(arrays)
    _check_metrics(recipe, positions)
    variants = store_recipes(recipe)
    plans, stored, classes = {}, {}, None
    for store, variant in variants.items():
        try:
            teacher = _teacher(variant, source, positions)
            plan = plans[store] = teacher_plan(inputs_plan(variant, source), variant, source, teacher)
        except UsageError as error:
            raise UsageError(f"stores.{store}: {error}" if store else str(error)) from error
        stored[store] = {field.name: field for field in plan.fields}
        classes = outputs_for(arrays, source.classes) or teacher.outputs
    assert classes is not None, "there is a teacher, and it has outputs"
    labelled = "label" in arrays or bool(recipe.baseline)
    alone = source if labelled else _learns(next(iter(variants.values())), source)
    for name, student in students.items():
        try:
            views = _views(student, [variants[store] for store in student.stores], source)
            _check_student(student, _zipped(student, stored, arrays), classes, positions, source, views)
            _check_alone(student, classes, positions, alone)
            objective = compose(student.objective, _zipped(student, stored, arrays), classes)
            if not objective.needs_labels_only:  # of the labelled rows alone there may be few
                for store in student.stores:
                    read = _read(variants[store], (*student.inputs, *objective.fields), positions)
                    check_memory(plans[store], read & stored[store].keys(), student.train)
        except UsageError as error:
            raise UsageError(f"student {name}: {error}") from error
    judged = open_source(recipe.eval_source).arrays if recipe.eval_source else arrays
    single = "label" in judged and not judged["label"].shape and "target" not in judged
    return {
        "positions": positions,
        "labelled": labelled,
        "classes": single and recipe.metrics[:1] in ((), ("accuracy",)),
    }


def _teacher(recipe: Recipe, source: Source, positions: int | None) -> FrozenTeacher:
    """A blank one, where it is yet to be fitted; the same shapes as the one to come."""
    from kdcache.models import InputSpec, build_model
    from kdcache.sources import check_same_vocabulary
    from kdcache.student.language import check_language_model
    from kdcache.teacher.frozen import FrozenTeacher, load_teacher

    config = recipe.teacher
    assert config, "only called for a recipe with a teacher"
    learns = _learns(recipe, source)
    check_same_vocabulary(_tokenizer(source), _tokenizer(learns), "source", "teacher.source")
    classes = outputs_for(learns.arrays, learns.classes)
    first, *others = named_arrays(config.inputs, source.arrays, "teacher")
    if not config.fit:
        return load_teacher(config, source.arrays, classes, InputSpec())
    if classes is None:
        raise UsageError("source: it has no labels, so nobody knows how many classes the teacher tells apart")
    blank = build_model(config.model, config.args, input=first, outputs=classes, extra=others, positions=positions)
    if positions is not None:
        check_language_model(blank, config.model, first, positions, classes)
    named_arrays(config.inputs, learns.arrays, "teacher.source")
    terms = config.objective or recipe.baseline or HARD_LABELS
    _check_fit(terms, config.model, blank, [first, *others], _plain_fields(learns), learns, classes, config.fit)
    return FrozenTeacher(blank, InputSpec(), config, classes)


def _learns(recipe: Recipe, source: Source) -> Source:
    """What the teacher is fitted on."""
    from kdcache.sources import open_source

    other = recipe.teacher.source if recipe.teacher else None
    return open_source(other) if other else source


def _check_metrics(recipe: Recipe, positions: int | None) -> None:
    """Names and options; and on what the evaluation rows are judged, where it is not what a language model is by."""
    from kdcache.metrics import check_options, fields_read, find_metric
    from kdcache.sources import open_source

    check_options({name: find_metric(name) for name in recipe.metrics}, recipe.metric_options)
    if recipe.eval_source is None or positions is not None:
        return
    known = {"id", *open_source(recipe.eval_source).arrays}
    for name in recipe.metrics:
        for field in fields_read([name], ()):
            if field not in known:
                raise UsageError(f"metrics: {name} reads {field!r}, and eval_source has only {sorted(known)}")


def _check_fit(
    terms: Sequence[ObjectiveConfig],
    model: str,
    network: nn.Module,
    samples: Sequence[Array],
    fields: Fields,
    source: Source,
    classes: int,
    train: TrainConfig,
) -> None:
    """UsageError for an objective that could not be learnt by this blank network from these fields."""
    from kdcache.objectives import compose
    from kdcache.objectives.term import item
    from kdcache.recipe.rehearsal import rehearse
    from kdcache.student.job import check_augment, check_fused, check_together
    from kdcache.student.module import student_shapes

    objective = compose(terms, fields, classes)
    sequences = sequence_positions(source.arrays) is not None
    check_together(objective, train)
    if sequences:
        check_augment(train)
        check_fused(objective)
    shapes = student_shapes(network, objective.taps, samples)
    if not sequences:  # a language model's are made by its head, a few rows at a time
        for term in objective.terms:
            for output in term.outputs:
                item(shapes, output, f"outputs of {model}", f"objective {term.name} reads it; name one of these")
    rehearse(objective, fields, shapes, source, sequences)


def _check_alone(student: Student, classes: int, positions: int | None, source: Source) -> None:
    """What the student alone learns, from the source's own fields."""
    from kdcache.models import build_model

    fields = _plain_fields(source)
    try:
        samples = named_arrays(student.inputs, source.arrays, "inputs")
        first, *others = samples
        network = build_model(
            student.model, student.args, input=first, outputs=classes, extra=others, positions=positions
        )
        _check_fit(student.baseline, student.model, network, samples, fields, source, classes, student.train)
    except UsageError as error:
        raise UsageError(f"alone, as the baseline: {error}") from error


def _views(student: Student, variants: Sequence[Recipe], source: Source) -> ViewsSpec | None:
    """Those of the student's stores, which all have the same."""
    from kdcache.views import ViewsSpec

    config = next((variant.views for variant in variants if variant.views), None)
    return ViewsSpec(config, source.arrays["input"]) if config else None


def _check_student(
    student: Student,
    fields: Fields,
    classes: int,
    positions: int | None,
    source: Source,
    views: ViewsSpec | None,
) -> None:
    from kdcache.models import build_model, check_vocabulary, load_weights, partial_weights
    from kdcache.objectives import compose
    from kdcache.student.job import check_views, chosen_view
    from kdcache.student.language import check_language_model

    objective = compose(student.objective, fields, classes)
    samples = named_arrays(student.inputs, {name: field.array for name, field in fields.items()}, "inputs")
    first, *others = samples
    network = build_model(student.model, student.args, input=first, outputs=classes, extra=others, positions=positions)
    check_vocabulary(network, student.model, _tokenizer(source))
    if positions is not None:
        check_language_model(network, student.model, first, positions, classes)
    if student.weights is not None:
        partial_weights(network, load_weights(student.weights)[0], student.weights)
    asked: Any = student.view  # whose kind its table has checked
    check_views(objective, views, fields, chosen_view(views, asked, "[views]"), student.train, "[views]")
    _check_fit(student.objective, student.model, network, samples, fields, source, classes, student.train)


def _zipped(student: Student, stored: Mapping[str | None, Fields], shared: Collection[str]) -> Fields:
    """The fields of a student's stores under the names that the loader gives them: `logits@2` is the second's, and of
    views those of one stand for all."""
    found = dict(stored[student.stores[0]])
    for number, store in enumerate(student.stores[1:], 2):
        for name, field in stored[store].items():
            if name not in found:
                found[name] = field
            elif name not in shared and name != "id":
                found[f"{name}@{number}"] = field
    from kdcache.loader.views import field_of_view

    if student.view == "plain" or not any(name.startswith("view01.") for name in found):
        return found
    called = {name: field_of_view(name, 1) for name in found}
    plain = {name: field for name, field in found.items() if called[name] == name}
    return plain | {str(new): found[name] for name, new in called.items() if new not in (name, None)}


def _plain_fields(source: Source) -> Fields:
    """What a store of the source alone would hold."""
    return {name: plain_field(name, array) for name, array in source.arrays.items()}


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
    check_same_vocabulary(_tokenizer(source), _tokenizer(other), "source", "eval_source")


def _tokenizer(source: Source) -> Mapping[str, Any] | None:
    """What a plan keeps of its tokenizer; None where the samples are no text."""
    found: Mapping[str, Any] | None = getattr(source, "extra", {}).get("tokenizer")
    return found
