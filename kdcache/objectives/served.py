"""What a stored field can serve: which objectives, at which temperatures, how exactly; asked before any training."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Mapping
from typing import Any, Protocol

from kdcache.arrays import Array
from kdcache.errors import StoreDamaged, UsageError
from kdcache.objectives.logits import mse_logits
from kdcache.objectives.specs import ObjectiveSpec

__all__ = ["CENTRED_CODECS", "LOG_Z_LIMIT", "SAMPLED_CODECS", "SPARSE_CODECS", "StoredField", "check_served"]

SPARSE_CODECS = frozenset({"topk"})  # decode to SparseLogits
SAMPLED_CODECS = frozenset({"sampled", "threshold"})  # decode to SampledLogits
CENTRED_CODECS = frozenset({"lowrank"})  # decode to logits less their row mean
LOG_Z_LIMIT = 0.05  # nats: the largest error of a sparse field's log-partition at T that an objective accepts


class StoredField(Protocol):
    """What composing asks of a store's field: its decoded tensor, its codec's name and what the codec was told."""

    @property
    def array(self) -> Array: ...

    @property
    def codec(self) -> str: ...

    @property
    def configuration(self) -> Mapping[str, Any]: ...


def check_served(
    place: str, spec: ObjectiveSpec, name: str, field: StoredField, options: Mapping[str, Any], facts: Mapping[str, Any]
) -> None:
    """UsageError, beginning with `place`, if the field cannot serve this objective with these options.

    `facts` are the store's: `{"fidelity": {field: {"log_z_error": {T: nats}}}}`, all of it optional.
    """
    stored = f"{name} is stored with codec = {field.codec!r}"
    temperature = options.get("temperature")
    if field.codec in SPARSE_CODECS:
        _check_sparse(place, spec, field, stored, temperature)
        if temperature is not None:
            _check_bound(place, name, stored, float(temperature), facts)
    if field.codec in SAMPLED_CODECS:
        _check_sampled(place, spec, field, stored, temperature)


def _check_sparse(place: str, spec: ObjectiveSpec, field: StoredField, stored: str, temperature: float | None) -> None:
    if not spec.sparse:
        raise UsageError(
            f"{place}: it needs every value as the teacher gave it, and {stored}, which keeps the best "
            'classes relative to the log-partition: dump the field with codec = "dense", or use kd'
        )
    if temperature is not None and temperature < 1:
        raise UsageError(
            f"{place}: temperature = {temperature} is below 1, and {stored}, which serves 1 and above: "
            'dump the field with codec = "dense"'
        )
    if spec.function is mse_logits and field.configuration.get("k") == 1:
        raise UsageError(
            f"{place}: it compares logits less their mean over the kept classes, and {stored}, k = 1: "
            "dump the field with k = 2 or more"
        )


def _check_sampled(place: str, spec: ObjectiveSpec, field: StoredField, stored: str, temperature: float | None) -> None:
    if not spec.sampled:
        raise UsageError(
            f"{place}: {stored}: random draws, unbiased only where the teacher's probabilities stand once and alone, "
            'which they do not here: take kd or soft_ce, or dump the field with codec = "topk" or "lowrank"'
        )
    drawn = field.configuration.get("temperature", 1.0)
    if not isinstance(drawn, float):
        raise StoreDamaged(f"{place}: {stored}, and plan.json has no temperature for it; restore it from a good copy")
    if temperature is not None and temperature != drawn:
        raise UsageError(
            f"{place}: temperature = {temperature:g}, and {stored}: draws from the teacher at T = {drawn:g}, which "
            f"serve that one alone: set temperature = {drawn:g}, or dump the field with temperature = {temperature:g}, "
            'or with codec = "topk" or "lowrank", which serve others'
        )


def _check_bound(place: str, name: str, stored: str, temperature: float, facts: Mapping[str, Any]) -> None:
    """Refuse a temperature at which the store's own measurement of its log-partition is off, or was not made."""
    grid = _stated(name, facts)
    if not grid:
        return
    cure = "dump the field with anchor (a second temperature at which it is exact), a larger k, or lowrank or dense"
    known = sorted(grid)
    if not known[0] <= temperature <= known[-1]:
        raise UsageError(
            f"{place}: temperature = {temperature:g}, and {stored}, whose error was measured for temperatures from "
            f"{known[0]:g} to {known[-1]:g}: take one of these, or {cure}"
        )
    above = bisect_left(known, temperature)
    around = {known[above]} if known[above] == temperature else {known[above - 1], known[above]}
    at = max(around, key=lambda known_at: (math.isnan(grid[known_at]), grid[known_at]))
    error = grid[at]
    if not error <= LOG_Z_LIMIT:
        raise UsageError(
            f"{place}: temperature = {temperature:g}, and {stored}: there its log-partition is off by {error:.3g} nats "
            f"(measured on its teacher at T = {at:g}), more than {LOG_Z_LIMIT:g}: {cure}"
        )


def _stated(name: str, facts: Mapping[str, Any]) -> dict[float, float]:
    """The field's error in nats by temperature, {} where the store says nothing; StoreDamaged for anything else."""
    found: Any = facts
    for key in ("fidelity", name, "log_z_error"):
        if not isinstance(found, Mapping) or key not in found:
            return {}
        found = found[key]
    try:
        return {float(temperature): float(error) for temperature, error in found.items()}
    except (AttributeError, TypeError, ValueError, OverflowError):
        raise StoreDamaged(
            f"facts.fidelity.{name}.log_z_error: it maps temperatures to nats, and is something else; "
            "restore the manifest from a good copy"
        ) from None
