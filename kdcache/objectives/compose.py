"""The weighted sum of losses that a recipe names, checked against the store's fields before any training."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from kdcache.config import ObjectiveConfig
from kdcache.errors import UsageError
from kdcache.near_misses import near_misses
from kdcache.objectives.divergences import check_share, jsd
from kdcache.objectives.logits import mse_logits
from kdcache.objectives.objective import Objective
from kdcache.objectives.options import checked_options
from kdcache.objectives.response import ce
from kdcache.objectives.served import CENTRED_CODECS, StoredField, check_served
from kdcache.objectives.specs import ObjectiveSpec
from kdcache.objectives.table import OBJECTIVES
from kdcache.objectives.term import Term

__all__ = ["compose"]


def compose(
    configs: Sequence[ObjectiveConfig],
    fields: Mapping[str, StoredField],
    classes: int,
    facts: Mapping[str, Any] | None = None,
) -> Objective:
    """The objective that the recipe's [[objective]] tables describe, over a store with these fields.

    The baseline is `compose([ObjectiveConfig(name="ce")], fields, classes)`. `facts` are the manifest's, what the store
    measured of itself: with them a temperature is refused at which a sparse field states too large an error.
    UsageError for everything that could not work: nothing is left to be found out while training but what the
    student's own outputs decide.
    """
    if not any(config.weight for config in configs):
        raise UsageError(
            "no [[objective]] with a weight above 0, so there is nothing to learn: "
            'give at least one, for instance name = "kd"'
        )
    terms = []
    for position, config in enumerate(configs):
        earlier = sum(other.name == config.name for other in configs[:position])
        terms.append(
            _term(config, f"{config.name}.{earlier}" if earlier else config.name, fields, classes, facts or {})
        )
    return Objective(tuple(terms), classes)


def _term(
    config: ObjectiveConfig, name: str, fields: Mapping[str, StoredField], classes: int, facts: Mapping[str, Any]
) -> Term:
    spec = OBJECTIVES.get(config.name)
    if spec is None:
        raise UsageError(f"objective {config.name!r} is not known; {near_misses(config.name, OBJECTIVES)}")
    place = f"objective {name}"
    _check_tap(place, config, spec)
    outputs = config.output or spec.output
    if config.tap:
        tapped = (name,) if len(config.tap) == 1 else tuple(f"{name}[{place}]" for place in range(len(config.tap)))
        outputs = (*tapped, *(config.output or ()))
    chosen = _fields(place, config, spec, fields)
    _check_count(place, spec, outputs, chosen)
    options = checked_options(place, config, spec)
    for one in chosen:
        _check_shape(place, spec, outputs, one, fields, classes)
        check_served(place, spec, one, fields[one], options, facts)
    if spec.function is jsd and "beta" in options:
        check_share(options["beta"])
    if spec.function is mse_logits and fields[chosen[0]].codec in CENTRED_CODECS:
        options["centred"] = True
    reads = (*chosen, *(("label",) if spec.label else ()), *(("id",) if spec.id else ()))
    shapes = tuple(fields[one].array.shape for one in chosen)
    return Term(name, config.weight, spec, outputs, config.tap or (), reads, shapes, options)


def _check_tap(place: str, config: ObjectiveConfig, spec: ObjectiveSpec) -> None:
    if spec.kind != "features" and config.tap is not None:
        raise UsageError(
            f"{place}: it judges the student's outputs and takes no tap (found {config.tap[0]!r}); leave it out"
        )
    if spec.kind == "features" and not (config.tap or config.output):
        raise UsageError(f'{place}: it compares a feature of the student: name its module, for instance tap = "layer3"')


def _fields(
    place: str, config: ObjectiveConfig, spec: ObjectiveSpec, fields: Mapping[str, StoredField]
) -> tuple[str, ...]:
    """The names of the fields that the term reads as its targets."""
    chosen = config.field or spec.field
    if spec.teachers and config.field is None:
        chosen = tuple(name for name in fields if name.partition("@")[0] == "logits")
        if len(chosen) < 2:
            raise UsageError(
                f"{place}: it is for several teachers, and the store has the logits of {len(chosen)}: zip their "
                "stores, or take kd"
            )
    if not chosen:
        raise UsageError(f'{place}: name the teacher\'s feature, field = "..."; the store has {sorted(fields)}')
    for one in chosen:
        if one not in fields:
            raise UsageError(
                f"{place}: the store has no labels; take hard_label or kd"
                if one == "label"
                else f"{place}: the store has no field {one!r}; {near_misses(one, fields)}"
            )
    if spec.function is ce and chosen != ("label",) and not fields[chosen[0]].array.dtype.startswith("int"):
        raise UsageError(f"{place}: it reads the labels, not {chosen[0]!r}; leave `field` out, or take hard_label")
    if spec.label and "label" not in fields:
        raise UsageError(f"{place}: it needs the labels too, and the store has none; take kd")
    return chosen


def _check_count(place: str, spec: ObjectiveSpec, outputs: tuple[str, ...], chosen: tuple[str, ...]) -> None:
    """UsageError unless the loss takes so many of the student's tensors and of the store's."""
    if spec.many:
        if len(outputs) != len(chosen):
            raise UsageError(
                f"{place}: {len(outputs)} of the student's features and {len(chosen)} of the teacher's; it compares "
                "them level by level, so name as many taps as fields, from the first layer to the last"
            )
        return
    if spec.kind == "classes" and len(outputs) != len(spec.output):
        raise UsageError(f"{place}: it judges {len(spec.output)} of the student's outputs, not {list(outputs)}")
    function: Any = getattr(spec.function, "forward", spec.function)
    parameters = list(inspect.signature(function).parameters.values())[int(spec.module) :]
    if any(parameter.kind is parameter.VAR_POSITIONAL for parameter in parameters):
        return
    positional = [p for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]
    needed = sum(p.default is p.empty for p in positional)
    given = len(outputs) + len(chosen) + spec.label + spec.id
    if not needed <= given <= len(positional):
        raise UsageError(
            f"{place}: it takes {', '.join(p.name for p in positional)}; "
            f"found {list(outputs)} of the student and {list(chosen)} of the store"
        )


def _check_shape(
    place: str,
    spec: ObjectiveSpec,
    outputs: tuple[str, ...],
    name: str,
    fields: Mapping[str, StoredField],
    classes: int,
) -> None:
    array = fields[name].array
    if spec.kind == "features" and not 1 <= len(array.shape) <= 3:
        raise UsageError(f"{place}: {name} is {array}; it compares vectors [D], states [L, D] or maps [D, H, W]")
    if spec.kind != "classes" or spec.function is ce or ("logits" not in outputs and spec.output == ("logits",)):
        return
    # Logits of a sequence have its positions first, and so have the labels.
    positions = fields["label"].array.shape if "label" in fields else array.shape[:-1]
    if name == "label" or array.shape != (*positions, classes):
        of_each = f" at each of the {positions[0]} positions" if positions else ""
        raise UsageError(f"{place}: {name} is {array}; it needs logits, one for each of the {classes} classes{of_each}")
