"""From a TOML file to a checked `Recipe`: parsing, overrides, paths, environment variables, near misses."""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from kdcache.config import Recipe, SourceConfig, StudentConfig, TeacherConfig
from kdcache.errors import UsageError
from kdcache.near_misses import near_misses

T = TypeVar("T", bound=BaseModel)

__all__ = ["checked", "data_root", "load_recipe"]


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
    recipe = checked(Recipe, table, str(path))
    return _located(recipe, path.absolute().parent)


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


def checked(model: type[T], table: Mapping[str, Any], place: str) -> T:
    """The table as a value of its kind; UsageError that says where, what was found and the nearest known key."""
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

    def located(teacher: TeacherConfig) -> TeacherConfig:
        vocabulary = teacher.vocabulary if teacher.vocabulary == "first" else path(teacher.vocabulary)
        other = source(teacher.source) if teacher.source else None
        return teacher.model_copy(update={"weights": path(teacher.weights), "vocabulary": vocabulary, "source": other})

    def begun(student: StudentConfig) -> StudentConfig:
        return student.model_copy(update={"weights": path(student.weights)})

    if recipe.teacher:
        changes["teacher"] = located(recipe.teacher)
    if recipe.student:
        changes["student"] = begun(recipe.student)
    changes["teachers"] = {name: located(teacher) for name, teacher in recipe.teachers.items()}
    changes["students"] = {name: begun(student) for name, student in recipe.students.items()}
    return recipe.model_copy(update=changes)
