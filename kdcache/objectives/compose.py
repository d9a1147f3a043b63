"""The weighted sum of losses that a recipe names, checked against the store's fields before any training."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

from kdcache.config import ObjectiveConfig
from kdcache.errors import UsageError
from kdcache.near_misses import near_misses
from kdcache.objectives.divergences import check_share, jsd
from kdcache.objectives.logits import mse_logits
from kdcache.objectives.objective import Objective, Term
from kdcache.objectives.response import ce
from kdcache.objectives.served import CENTRED_CODECS, StoredField, check_served
from kdcache.objectives.specs import OBJECTIVES, ObjectiveSpec

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
    chosen = _field(place, config, spec, fields)
    field = fields[chosen]
    _check_shape(place, spec, chosen, fields, classes)
    options = _options(place, config, spec)
    check_served(place, spec, chosen, field, options, facts)
    if spec.function is mse_logits and field.codec in CENTRED_CODECS:
        options["centred"] = True
    function = functools.partial(spec.function, **options)
    reads = (chosen, "label") if spec.label else (chosen,)
    return Term(name, config.weight, reads, function, config.tap, field.array.shape, spec.labelled)


def _options(place: str, config: ObjectiveConfig, spec: ObjectiveSpec) -> dict[str, Any]:
    """What the function is told: the keys given, and a temperature always, so that what is checked is what is used."""
    given = {key: getattr(config, key) for key in ("temperature", "alpha", "beta")}
    for key, value in given.items():
        if value is not None and key not in spec.options:
            raise UsageError(f"{place}: it takes no {key} (found {value}); leave it out")
    if "temperature" in spec.options and given["temperature"] is None:
        given["temperature"] = 1.0
    if spec.function is jsd and given["beta"] is not None:
        check_share(given["beta"])
    return {key: value for key, value in given.items() if value is not None}


def _field(place: str, config: ObjectiveConfig, spec: ObjectiveSpec, fields: Mapping[str, StoredField]) -> str:
    """The name of the field that the term reads."""
    if config.tap is not None and not spec.tap:
        raise UsageError(
            f"{place}: it compares the student's logits and takes no tap (found {config.tap!r}); leave it out"
        )
    if config.tap is None and spec.tap:
        raise UsageError(f'{place}: it compares a feature of the student: name its module, for instance tap = "layer3"')
    chosen = config.field or spec.field
    if chosen is None:
        raise UsageError(f'{place}: name the teacher\'s feature, field = "..."; the store has {sorted(fields)}')
    if spec.function is ce and chosen != "label":
        raise UsageError(f"{place}: it reads the labels, not {chosen!r}; leave `field` out, or take hard_label")
    if spec.label and "label" not in fields:
        raise UsageError(f"{place}: it needs the labels too, and the store has none; take kd")
    if chosen not in fields:
        raise UsageError(
            f"{place}: the store has no labels; take hard_label or kd"
            if chosen == "label"
            else f"{place}: the store has no field {chosen!r}; {near_misses(chosen, fields)}"
        )
    return chosen


def _check_shape(place: str, spec: ObjectiveSpec, name: str, fields: Mapping[str, StoredField], classes: int) -> None:
    array = fields[name].array
    if spec.tap and len(array.shape) not in (1, 3):
        raise UsageError(f"{place}: {name} is {array}; it compares vectors [D] or maps [D, H, W]")
    if spec.tap or spec.function is ce:
        return
    # Logits of a sequence have its positions first, and so have the labels.
    positions = fields["label"].array.shape if "label" in fields else array.shape[:-1]
    if name == "label" or array.shape != (*positions, classes):
        of_each = f" at each of the {positions[0]} positions" if positions else ""
        raise UsageError(f"{place}: {name} is {array}; it needs logits, one for each of the {classes} classes{of_each}")
