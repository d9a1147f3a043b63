"""The weighted sum of losses that a recipe names, checked against the store's fields before any training."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn

from kdcache.arrays import Array
from kdcache.codecs import SparseLogits
from kdcache.config import ObjectiveConfig
from kdcache.errors import UsageError
from kdcache.near_misses import near_misses
from kdcache.objectives.adapters import Adapter
from kdcache.objectives.feature import hint
from kdcache.objectives.response import ce, hard_label, kd, mse_logits, soft_ce

__all__ = ["CENTRED_CODECS", "OBJECTIVES", "SPARSE_CODECS", "Objective", "ObjectiveSpec", "Term", "compose"]

T = TypeVar("T")

SPARSE_CODECS = frozenset({"topk"})  # decode to SparseLogits
CENTRED_CODECS = frozenset({"lowrank"})  # decode to logits less their row mean


class StoredField(Protocol):
    """What composing asks of a store's field: its decoded tensor, and its codec's name."""

    @property
    def array(self) -> Array: ...

    @property
    def codec(self) -> str: ...


@dataclass(frozen=True)
class ObjectiveSpec:
    """One row of `OBJECTIVES`."""

    function: Callable[..., Tensor]  # (student's tensor, the field's targets, **options) -> scalar
    field: str | None  # read unless the recipe names another; None = the recipe has to
    temperature: bool = False  # takes one, 1 unless given
    sparse: bool = False  # defined on SparseLogits
    tap: bool = False  # compares a feature of the student behind an adapter, not its logits


OBJECTIVES: dict[str, ObjectiveSpec] = {
    "ce": ObjectiveSpec(ce, "label"),
    "hard_label": ObjectiveSpec(hard_label, "logits", sparse=True),
    "hint": ObjectiveSpec(hint, None, tap=True),
    "kd": ObjectiveSpec(kd, "logits", temperature=True, sparse=True),
    "mse_logits": ObjectiveSpec(mse_logits, "logits"),
    "soft_ce": ObjectiveSpec(soft_ce, "logits", temperature=True, sparse=True),
}


@dataclass(frozen=True)
class Term:
    """One checked term of the sum. `name` is unique: kd, kd.1, ..."""

    name: str
    weight: float
    field: str
    function: Callable[[Tensor, Any], Tensor]
    tap: str | None  # the student's module path
    shape: tuple[int, ...]  # of the field, per sample

    @property
    def adapter(self) -> str:
        """The key of its adapter: a ModuleDict takes no dots."""
        return self.name.replace(".", "_")


@dataclass(frozen=True)
class Objective:
    """A callable sum of terms over `classes` classes."""

    terms: tuple[Term, ...]
    classes: int

    @property
    def fields(self) -> tuple[str, ...]:
        """The store's fields that a batch must hold, in the order of the terms."""
        return tuple(dict.fromkeys(term.field for term in self.terms))

    @property
    def taps(self) -> dict[str, str]:
        """Output name -> module path of the student, one for each term that compares features."""
        return {term.name: term.tap for term in self.terms if term.tap is not None}

    @property
    def needs_labels_only(self) -> bool:
        """True if unlabelled rows are of no use to it."""
        return self.fields == ("label",)

    def adapters(self, student_shapes: Mapping[str, tuple[int, ...]]) -> nn.ModuleDict:
        """Adapters to be trained with the student, from the shape per sample of every output in `taps`."""
        cure = f"give the shape of each of {self.taps}"
        return nn.ModuleDict(
            {
                term.adapter: Adapter(_item(student_shapes, term.name, "student's shapes", cure), term.shape)
                for term in self.terms
                if term.tap is not None
            }
        )

    def __call__(
        self, outputs: Mapping[str, Tensor], batch: Mapping[str, Tensor | SparseLogits], adapters: nn.ModuleDict
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss to go backward from, float32, and every term's own value: detached, not yet weighted.

        outputs: "logits" [B, C] and one tensor for each of `taps`. batch: one entry for each of `fields`.
        """
        logits = _item(outputs, "logits", "student's outputs", "pass its logits [rows, classes]")
        if logits.shape[-1] != self.classes:
            raise UsageError(
                f"the student gives {logits.shape[-1]} outputs, the store's logits have {self.classes} "
                f"classes; set the student's number of outputs to {self.classes}"
            )
        projections = dict(adapters.items())
        loss = torch.zeros((), device=logits.device)
        values: dict[str, Tensor] = {}
        for term in self.terms:
            student = logits
            if term.tap is not None:
                feature = _item(outputs, term.name, "student's outputs", f"run it with the taps {self.taps}")
                student = _item(projections, term.adapter, "adapters", "make them with objective.adapters")(feature)
            target = _item(batch, term.field, "batch", f"ask the loader for the fields {list(self.fields)}")
            value = term.function(student, target)
            loss = loss + term.weight * value
            values[term.name] = value.detach()
        return loss, values


def compose(configs: Sequence[ObjectiveConfig], fields: Mapping[str, StoredField], classes: int) -> Objective:
    """The objective that the recipe's [[objective]] tables describe, over a store with these fields.

    The baseline is `compose([ObjectiveConfig(name="ce")], fields, classes)`. UsageError for everything that could
    not work: nothing is left to be found out while training but what the student's own outputs decide.
    """
    if not any(config.weight for config in configs):
        raise UsageError(
            "no [[objective]] with a weight above 0, so there is nothing to learn: "
            'give at least one, for instance name = "kd"'
        )
    terms = []
    for position, config in enumerate(configs):
        earlier = sum(other.name == config.name for other in configs[:position])
        terms.append(_term(config, f"{config.name}.{earlier}" if earlier else config.name, fields, classes))
    return Objective(tuple(terms), classes)


def _term(config: ObjectiveConfig, name: str, fields: Mapping[str, StoredField], classes: int) -> Term:
    spec = OBJECTIVES.get(config.name)
    if spec is None:
        raise UsageError(f"objective {config.name!r} is not known; {near_misses(config.name, OBJECTIVES)}")
    place = f"objective {name}"
    if config.temperature is not None and not spec.temperature:
        raise UsageError(f"{place}: it takes no temperature (found {config.temperature}); leave it out")
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
    if chosen not in fields:
        raise UsageError(
            f"{place}: the store has no labels; take hard_label or kd"
            if chosen == "label"
            else f"{place}: the store has no field {chosen!r}; {near_misses(chosen, fields)}"
        )
    field = fields[chosen]
    _check_shape(place, spec, chosen, field, classes)
    options: dict[str, Any] = {}
    if spec.temperature:
        options["temperature"] = 1.0 if config.temperature is None else config.temperature
    if field.codec in SPARSE_CODECS:
        _check_sparse(place, spec, chosen, field, options.get("temperature", 1.0))
    if spec.function is mse_logits and field.codec in CENTRED_CODECS:
        options["centred"] = True
    return Term(name, config.weight, chosen, functools.partial(spec.function, **options), config.tap, field.array.shape)


def _check_shape(place: str, spec: ObjectiveSpec, name: str, field: StoredField, classes: int) -> None:
    if spec.tap and len(field.array.shape) not in (1, 3):
        raise UsageError(f"{place}: {name} is {field.array}; it compares vectors [D] or maps [D, H, W]")
    if not spec.tap and name != "label" and field.array.shape != (classes,):
        raise UsageError(f"{place}: {name} is {field.array}; it needs logits, one for each of the {classes} classes")


def _check_sparse(place: str, spec: ObjectiveSpec, name: str, field: StoredField, temperature: float) -> None:
    stored = f"{name} is stored with codec = {field.codec!r}"
    if not spec.sparse:
        raise UsageError(
            f"{place}: it needs every value as the teacher gave it, and {stored}, which keeps the best "
            'classes relative to the log-partition: dump the field with codec = "dense", or use kd'
        )
    if temperature < 1:
        raise UsageError(
            f"{place}: temperature = {temperature} is below 1, and {stored}, which serves 1 and above: "
            'dump the field with codec = "dense"'
        )


def _item(found: Mapping[str, T], key: str, place: str, cure: str) -> T:
    if key not in found:
        raise UsageError(f"no {key!r} in the {place}, only {sorted(found)}: {cure}")
    return found[key]
