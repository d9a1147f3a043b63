"""From a TOML file to a checked `Recipe`: parsing, overrides, paths, environment variables, near misses."""

from __future__ import annotations

import itertools
import os
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from kdcache.config import ObjectiveConfig, Recipe, SourceConfig, StudentConfig, TrainConfig
from kdcache.errors import UsageError
from kdcache.near_misses import near_misses

T = TypeVar("T", bound=BaseModel)

__all__ = ["Student", "data_root", "load_recipe", "resolve_students", "store_recipes"]


@dataclass(frozen=True)
class Student:
    """One network to fit, with everything that it inherits filled in."""

    name: str
    model: str
    args: dict[str, Any]
    objective: tuple[ObjectiveConfig, ...]
    train: TrainConfig
    store: str | None = None


def data_root() -> Path:
    """Where public datasets are kept: `$KDCACHE_DATA`, else the user's cache folder."""
    if given := os.environ.get("KDCACHE_DATA"):
        return Path(given).expanduser()
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(cache).expanduser() / "kdcache" / "data"


def load_recipe(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """The checked recipe in a TOML file.

    `overrides` are `key.path=value` with the value in TOML (a bare word is taken as a string); list items are
    named by their number, `objective.0.weight=0.5`, keys that hold a dot are quoted. Relative paths are made absolute
    against the recipe's folder.
    Raises UsageError with the file, the key, what was found, and the nearest known key.
    """
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"{path}: the recipe cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:  # not UTF-8, not TOML, nested too deep, a number too long
        raise UsageError(f"{path}: not a TOML file: {error}") from error
    for override in overrides:
        _override(table, override)
    recipe = _check(Recipe, table, str(path))
    return _located(recipe, path.absolute().parent)


def store_recipes(recipe: Recipe) -> dict[str | None, Recipe]:
    """For each of [stores] the recipe that dumps it, by name; without any, the recipe itself by None."""
    plain = recipe.model_copy(update={"stores": {}})
    if not recipe.stores:
        return {None: plain}
    return {
        name: plain.model_copy(update={"fields": {**recipe.fields, **one.fields}})
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
        checked = _check(TrainConfig, train, f"students.{name}.train")
        students[name] = Student(name, model, args or {}, objective, checked, _store(recipe, name, config))
    return _multiply(students, recipe.grid) if recipe.grid else students


def _store(recipe: Recipe, name: str, config: StudentConfig) -> str | None:
    """Which of the recipe's stores a student learns from; None where the recipe has just one, without a name."""
    chosen = config.store or (recipe.student.store if recipe.student else None)
    if chosen not in (recipe.stores or {None}):
        known = near_misses(chosen or "", recipe.stores) if recipe.stores else "the recipe has no [stores]"
        raise UsageError(f"student {name!r}: store = {chosen!r} is none of the recipe's; {known}")
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
            _check(ObjectiveConfig, settings[term], f"grid cell {name}") for term in _named(student.objective)
        )
        train = _check(TrainConfig, settings["train"], f"grid cell {name}")
        network = _check(StudentConfig, {"model": model, "args": settings["args"]}, f"grid cell {name}")
        model_args = network.model or student.model, network.args or {}
        cells[name] = Student(name, *model_args, objective, train, student.store)
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


def _override(table: dict[str, Any], text: str) -> None:
    key, equals, raw = text.partition("=")
    if not equals or not key.strip():
        raise UsageError(f"--set {text!r}: write it as key.path=value, for instance --set train.epochs=5")
    place: Any = table
    *parents, last = _key_path(key, text)
    value = _value(raw)
    try:
        for part in parents:
            place = place[int(part)] if isinstance(place, list) else place.setdefault(part, {})
        if isinstance(place, list):
            place[int(last)] = value
        else:
            place[last] = value
    except (IndexError, ValueError, TypeError, AttributeError) as error:
        raise UsageError(f"--set {text!r}: the recipe has no such place") from error


def _key_path(key: str, text: str) -> list[str]:
    """The parts of a dotted key as TOML reads it: `fields."features.hidden".codec` has three."""
    try:
        here = tomllib.loads(f"{key.strip()} = true")
    except (ValueError, RecursionError) as error:
        raise UsageError(f"--set {text!r}: {key.strip()!r} is not a key of a recipe") from error
    parts: list[str] = []
    while isinstance(here, dict):
        ((part, here),) = here.items()
        parts.append(part)
    return parts


def _value(raw: str) -> Any:
    try:
        table = tomllib.loads(f"value = {raw}")
    except (ValueError, RecursionError):
        return raw.strip()
    return table["value"] if len(table) == 1 else raw.strip()


def _check(model: type[T], table: Mapping[str, Any], place: str) -> T:
    try:
        return model.model_validate(table)
    except ValidationError as error:
        raise UsageError("; ".join(_sentence(model, problem, place) for problem in error.errors()[:3])) from None


def _sentence(model: type[BaseModel], problem: Any, place: str) -> str:
    key = ".".join(map(str, problem["loc"]))
    if problem["type"] == "extra_forbidden":
        known = _known_keys(model, problem["loc"][:-1])
        return f"{place}: unknown key {key!r}; {near_misses(str(problem['loc'][-1]), known)}"
    said = problem["msg"].removeprefix("Value error, ")
    found = "" if problem["type"] in ("missing", "value_error") else f" (found {problem['input']!r})"
    return f"{place}: {key}: {said}{found}" if key else f"{place}: {said}{found}"


def _known_keys(model: type[BaseModel], location: Sequence[int | str]) -> list[str]:
    """The keys of the table at a location, found by following the annotations down."""
    here: type[BaseModel] | None = model
    for part in location:
        if isinstance(part, int) or here is None or part not in here.model_fields:
            continue
        found = _table_in(here.model_fields[part].annotation)
        here = found or here
    return list(here.model_fields) if here else []


def _table_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for inner in getattr(annotation, "__args__", ()):
        if found := _table_in(inner):
            return found
    return None


def _located(recipe: Recipe, folder: Path) -> Recipe:
    def path(value: Path | None) -> Path | None:
        if value is None:
            return None
        # $KDCACHE_DATA has a default, so it stands for something even where it is not set.
        root = str(data_root()).replace("\\", r"\\")
        text = os.path.expandvars(re.sub(r"\$(KDCACHE_DATA\b|\{KDCACHE_DATA\})", root, str(value)))
        if "$" in text:
            raise UsageError(f"{value}: the environment variable in this path is not set")
        if "\0" in text:
            raise UsageError(f"{str(value)!r}: is not a path; no file's name holds a NUL")
        try:
            return folder / Path(text).expanduser()
        except RuntimeError as error:
            raise UsageError(f"{value}: there is no such user; write the path out") from error

    def source(config: SourceConfig) -> SourceConfig:
        return config.model_copy(
            update={
                "images": path(config.images),
                "labels": path(config.labels),
                "path": path(config.path),
                "files": tuple(path(file) for file in config.files),
                "tokenizer": config.tokenizer if config.tokenizer == "bytes" else path(config.tokenizer),
                "tokenizer_files": tuple(path(file) for file in config.tokenizer_files),
            }
        )

    changes: dict[str, Any] = {"source": source(recipe.source)}
    if recipe.eval_source:
        changes["eval_source"] = source(recipe.eval_source)
    if teacher := recipe.teacher:
        vocabulary = teacher.vocabulary if teacher.vocabulary == "first" else path(teacher.vocabulary)
        changes["teacher"] = teacher.model_copy(update={"weights": path(teacher.weights), "vocabulary": vocabulary})
    return recipe.model_copy(update=changes)
