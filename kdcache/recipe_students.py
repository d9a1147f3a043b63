"""The students that a recipe names, and the stores that they learn from."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from kdcache.config import ObjectiveConfig, Recipe, StudentConfig, TrainConfig
from kdcache.errors import UsageError
from kdcache.near_misses import near_misses
from kdcache.recipe_file import checked

__all__ = ["HARD_LABELS", "Student", "resolve_students", "store_recipes"]

HARD_LABELS = (ObjectiveConfig(name="ce"),)


@dataclass(frozen=True)
class Student:
    """One network to fit, with everything that it inherits filled in."""

    name: str
    model: str
    args: dict[str, Any]
    objective: tuple[ObjectiveConfig, ...]
    train: TrainConfig
    stores: tuple[str | None, ...] = (None,)  # names of the recipe's stores, zipped in this order
    inputs: tuple[str, ...] = ("input",)
    weights: Path | None = None
    view: str | int | None = None
    baseline: tuple[ObjectiveConfig, ...] = HARD_LABELS
    metrics: tuple[str, ...] = ()
    metric_options: dict[str, Any] = field(default_factory=dict)


def store_recipes(recipe: Recipe) -> dict[str | None, Recipe]:
    """For each of [stores], or of [teachers], the recipe that dumps it, by name; without any, itself by None."""
    plain = recipe.model_copy(update={"stores": {}, "teachers": {}})
    if recipe.teachers:
        found: dict[str | None, Recipe] = {}
        for name, teacher in recipe.teachers.items():
            gives = {"logits", *teacher.taps, *teacher.outputs}
            own = recipe.stores[name].fields if name in recipe.stores else {}
            fields = {field: how for field, how in recipe.fields.items() if field in gives} | own
            found[name] = plain.model_copy(update={"teacher": teacher, "fields": fields})
        return found
    if not recipe.stores:
        return {None: plain}
    return {
        name: plain.model_copy(update={"fields": {**recipe.fields, **one.fields}, "views": one.views or recipe.views})
        for name, one in recipe.stores.items()
    }


def resolve_students(recipe: Recipe) -> dict[str, Student]:
    """Every student that the recipe names, by name, `[grid]` multiplied out."""
    named = recipe.students or ({"student": recipe.student} if recipe.student else {})
    students: dict[str, Student] = {}
    for name, config in named.items():
        if name == "teacher" or name.startswith("baseline"):
            raise UsageError(f"students.{name}: teacher and baseline are taken; give the student another name")
        base = recipe.student
        model = config.model or (base.model if base else None)
        if model is None:
            raise UsageError(f"students.{name}: no model; give one there or in [student]")
        args = config.args if config.args is not None else (base.args if base and config.model is None else None)
        given = (config.objective, base.objective if base else None)
        objective = next((terms for terms in given if terms is not None), recipe.objective)
        if not objective:
            raise UsageError(f'student {name!r}: no [[objective]]; give at least one, for instance name = "kd"')
        train = recipe.train.model_dump(exclude_unset=True)
        for changes in (base.train if base else {}, config.train):
            if "steps" in changes or "epochs" in changes:  # one length replaces another
                train = {key: value for key, value in train.items() if key not in ("steps", "epochs")}
            train = train | changes
        trained = checked(TrainConfig, train, f"students.{name}.train")
        inherited = base or StudentConfig()
        students[name] = Student(
            name,
            model,
            args or {},
            objective,
            trained,
            _stores(recipe, name, config),
            config.inputs or inherited.inputs or ("input",),
            config.weights or inherited.weights,
            config.view or inherited.view,
            recipe.baseline or HARD_LABELS,
            recipe.metrics,
            recipe.metric_options,
        )
    return _multiply(students, recipe.grid) if recipe.grid else students


def _stores(recipe: Recipe, name: str, config: StudentConfig) -> tuple[str | None, ...]:
    """Which of the recipe's stores a student learns from; (None,) where the recipe has just one, without a name."""
    chosen = config.store or (recipe.student.store if recipe.student else None)
    known = list(recipe.teachers or recipe.stores)
    if chosen is None and recipe.teachers:
        return tuple(known)
    if chosen is None and not known:
        return (None,)
    for one in chosen or ("",):
        if one not in known:
            others = near_misses(one, known) if known else "the recipe has no [stores]"
            raise UsageError(f"student {name!r}: store = {one or None!r} is none of the recipe's; {others}")
    assert chosen is not None, "a missing one was refused"
    return chosen


def _multiply(students: dict[str, Student], grid: Mapping[str, list[Any]]) -> dict[str, Student]:
    if len(students) != 1:
        raise UsageError("grid: multiplies a student, and the recipe names none; add [student]")
    (student,) = students.values()
    cells: dict[str, Student] = {}
    for cell in itertools.product(*_axes(grid)):
        settings: dict[str, dict[str, Any]] = {
            **{name: term.model_dump(exclude_unset=True) for name, term in _named(student.objective).items()},
            "train": student.train.model_dump(exclude_unset=True),
            "args": dict(student.args),
        }
        terms = settings.keys() - {"train", "args"}
        model = student.model
        for keys, chosen in cell:
            for key, value in zip(keys, chosen, strict=True):
                # Names of terms may hold a dot (kd.1.weight), names of arguments and of [train] may not.
                head, _, tail = key.partition(".") if key.startswith(("train.", "args.")) else key.rpartition(".")
                if key == "model":
                    model = value
                elif head in settings and tail:
                    settings[head][tail] = value
                else:
                    known = [*(f"{name}.weight" for name in sorted(terms)), "train.lr", "args.<name>", "model"]
                    raise UsageError(f"grid: {key!r} is not a setting of the student; keys look like {known}")
        name = ",".join(f"{_plain(keys[0])}={_plain(chosen[0])}" for keys, chosen in cell)
        if name in cells:
            raise UsageError(f"grid: two cells would both be called {name!r}; leave out the value that is there twice")
        objective = tuple(
            checked(ObjectiveConfig, settings[term], f"grid cell {name}") for term in _named(student.objective)
        )
        train = checked(TrainConfig, settings["train"], f"grid cell {name}")
        network = checked(StudentConfig, {"model": model, "args": settings["args"]}, f"grid cell {name}")
        model_args = network.model or student.model, network.args or {}
        cells[name] = replace(
            student, name=name, model=model_args[0], args=model_args[1], objective=objective, train=train
        )
    return cells


def _axes(grid: Mapping[str, list[Any]]) -> list[list[tuple[list[str], list[Any]]]]:
    """For each axis its points: the keys that are set together, and a value for each."""
    axes, seen = [], set[str]()
    for key, values in grid.items():
        keys = [part.strip() for part in key.split(",")]
        if not values:
            raise UsageError(f"grid: {key!r} has no values; give at least one, or leave it out")
        if twice := [part for part in keys if part in seen or keys.count(part) > 1]:
            raise UsageError(f"grid: {twice[0]!r} is set twice; let one axis set it")
        seen.update(keys)
        for value in values:
            if len(keys) > 1 and not (isinstance(value, list) and len(value) == len(keys)):
                raise UsageError(
                    f"grid: {key!r} sets {len(keys)} keys, so each value is a list of {len(keys)}, not {value}"
                )
        axes.append([(keys, value if len(keys) > 1 else [value]) for value in values])
    return axes


def _named(terms: Sequence[ObjectiveConfig]) -> dict[str, ObjectiveConfig]:
    """The terms under the names that the metrics show: kd, kd.1, ..."""
    named: dict[str, ObjectiveConfig] = {}
    for place, term in enumerate(terms):
        earlier = sum(other.name == term.name for other in terms[:place])
        named[f"{term.name}.{earlier}" if earlier else term.name] = term
    return named


def _plain(value: Any) -> str:
    """A value as part of a folder's name."""
    return re.sub(r"[^A-Za-z0-9.+-]+", "-", str(value)).strip("-")
