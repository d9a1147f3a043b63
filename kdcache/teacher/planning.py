"""From a recipe to a plan: which fields, how wide, in which order; fitted tables where a codec needs a pilot."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kdcache.arrays import Array
from kdcache.codecs import CODECS
from kdcache.config import Recipe
from kdcache.errors import StoreMismatch, UsageError
from kdcache.models import InputSpec
from kdcache.sources import Source
from kdcache.store import Plan, plain_field, read_plan
from kdcache.store.guard import safe
from kdcache.teacher.budget import Choice
from kdcache.teacher.fields import teacher_fields
from kdcache.teacher.frozen import FrozenTeacher
from kdcache.teacher.pilot import PILOT_ROWS, pilot
from kdcache.teacher.reductions import fitted_projection, needs_pilot
from kdcache.teacher.viewed import base_name, view_fields, views_of
from kdcache.views import views_json

__all__ = ["fit_tables", "input_spec_of", "inputs_plan", "tables_on", "teacher_plan"]

_STATISTICS_ROWS = 8192
_READ_ROWS = 1024
_FIRST = ("id", "input", "segment", "label")  # what a source gives, in the order of a store's fields; then the rest
Tables = dict[str, dict[str, NDArray[Any]]]


def inputs_plan(recipe: Recipe, source: Source, like: Path | None = None) -> Plan:
    """The plan of a store of a recipe's inputs and labels alone.

    `like` is a store whose order and cut are taken over; raises StoreMismatch unless it has the same source.
    """
    if not len(source):
        raise UsageError(f"{source.name}: has no samples")
    other = read_plan(like) if like else None
    if like and other is None:
        raise UsageError(f"--like {like}: holds no plan.json, so it is not a store")
    layout = other or recipe.store
    arrays = {"id": Array("int64"), **source.arrays}
    plan = Plan(
        rows=len(source),
        source={
            "name": source.name,
            "fingerprint": source.fingerprint(),
            "classes": source.classes,
            "class_names": list(source.class_names),
            **getattr(source, "extra", {}),
        },
        order=dict(other.order) if other else {"kind": recipe.store.order, "seed": recipe.store.seed},
        unit_rows=layout.unit_rows,
        block_rows=layout.block_rows,
        batch_rows=min(_READ_ROWS, layout.unit_rows),
        container={"format": recipe.store.format, "compression": recipe.store.compression},
        fields=tuple(plain_field(name, arrays[name], shared=name not in _FIRST) for name in _ordered(arrays)),
    )
    if other and other.alignment != dataclasses.replace(plan, views=other.views).alignment:
        raise StoreMismatch(
            f"--like {like}: holds {other.rows} rows of {safe(other.source['name'])} "
            f"({other.source['fingerprint'][:16]}), this recipe's source is {plan.rows} rows of {source.name} "
            f"({plan.source['fingerprint'][:16]}); both need the same [source]: files, rows, labelled, seed"
        )
    return dataclasses.replace(plan, input_statistics=_statistics(source, plan))


def _ordered(arrays: Mapping[str, Array]) -> list[str]:
    return [name for name in _FIRST if name in arrays] + sorted(arrays.keys() - set(_FIRST))


def teacher_plan(
    plan: Plan, recipe: Recipe, source: Source, teacher: FrozenTeacher, chosen: Mapping[str, Choice] | None = None
) -> Plan:
    """The inputs plan with the teacher's fields added; `chosen`: the codecs of those that have a budget."""
    chosen = chosen or {}
    given, spec = teacher_fields(recipe, source, teacher, chosen), views_of(recipe, source)
    described = _describe(teacher)
    return dataclasses.replace(
        plan,
        batch_rows=min(teacher.config.batch_size, plan.unit_rows),
        teacher=described,
        fields=view_fields(plan.fields, given, spec) if spec else (*plan.fields, *given),
        budget={name: choice.facts for name, choice in sorted(chosen.items())},
        views=views_json(spec.config, described["weights"]) if spec else None,
    )


def input_spec_of(plan: Plan) -> InputSpec:
    """The scaling that a plan's own statistics give."""
    statistics = plan.input_statistics
    return InputSpec(tuple(statistics["mean"]), tuple(statistics["std"])) if statistics else InputSpec()


def _statistics(source: Source, plan: Plan) -> dict[str, list[float]] | None:
    """Mean and standard deviation per channel of integer inputs, over the first rows of the plan."""
    array = source.arrays["input"]
    if array.dtype.startswith(("float", "bfloat")) or "tokenizer" in getattr(source, "extra", {}):
        return None  # the numbers of tokens are names
    ids = source.ids()[plan.permutation()[:_STATISTICS_ROWS]]
    axes = (0, 2, 3) if len(array.shape) == 3 else None
    total = square = np.float64(0)
    count = 0
    for start in range(0, len(ids), 1024):
        values = source.read(ids[start : start + 1024])["input"].astype(np.float64)
        total = total + values.sum(axes)
        square = square + (values * values).sum(axes)
        count += values.size // (array.shape[0] if axes else 1)
    mean = np.atleast_1d(total / count)
    std = np.sqrt(np.maximum(np.atleast_1d(square / count) - mean * mean, 0.0))
    return {"mean": [float(x) for x in mean], "std": [float(x) or 1.0 for x in std]}


def _describe(teacher: FrozenTeacher) -> dict[str, Any]:
    config, spec = teacher.config, teacher.input_spec
    given: dict[str, Any] = {"inputs": list(config.inputs)} if config.inputs != ("input",) else {}
    given |= {"outputs": config.outputs} if config.outputs else {}
    return {
        **given,
        "model": config.model,
        "args": config.args,
        "weights": teacher.fingerprint(),
        "precision": config.precision,
        "taps": config.taps,
        "pool": config.pool,
        "input": {"mean": list(spec.mean), "std": list(spec.std)} if spec.mean and spec.std else None,
    }


def fit_tables(plan: Plan, source: Source, teacher: FrozenTeacher) -> Tables:
    """The tables that codecs and projections need, fitted on a pilot: the first rows of the (shuffled) plan.

    Where there are views, `source` gives the pilot's images as view 1 shows them.
    """
    fitted = [f for f in plan.fields if CODECS[f.codec].NEEDS_PILOT or needs_pilot(f.reduction)]
    outputs: dict[str, Tensor] = {}
    if fitted:
        ids = source.ids()[plan.permutation()[:PILOT_ROWS]]
        outputs, _ = pilot(source, teacher, ids, plan.batch_rows, {base_name(plan, f.name) for f in fitted})
    found: Tables = {}
    for field in plan.fields:  # all views of a field have the same tables
        name = base_name(plan, field.name)
        if name not in found:
            found[name] = fitted_projection(field.reduction, outputs.get(name))
            if CODECS[field.codec].NEEDS_PILOT:
                found[name] |= CODECS[field.codec].fit(outputs[name], field.configuration)
    named = {field.name: found[base_name(plan, field.name)] for field in plan.fields}
    return {name: tables for name, tables in named.items() if tables}


def tables_on(tables: Mapping[str, NDArray[Any]], device: torch.device) -> dict[str, Tensor]:
    """A field's tables as tensors where its codec works."""
    return {name: torch.from_numpy(values).to(device) for name, values in tables.items()}
