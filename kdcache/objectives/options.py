"""A loss's own options, checked against its keyword-only parameters."""

from __future__ import annotations

import inspect
from typing import Any

from pydantic import ConfigDict, TypeAdapter, ValidationError

from kdcache.config import ObjectiveConfig
from kdcache.errors import UsageError
from kdcache.near_misses import near_misses
from kdcache.objectives.specs import ObjectiveSpec

__all__ = ["checked_options"]

_STRICT = ConfigDict(strict=True, allow_inf_nan=False)


def checked_options(place: str, config: ObjectiveConfig, spec: ObjectiveSpec) -> dict[str, Any]:
    """The keys that were given, as values of the right kind, and a temperature always, so that what is checked is what
    is used. UsageError, beginning with `place`, for a key that the loss does not take or a value of another kind."""
    known = spec.options
    found: dict[str, Any] = {}
    for key, value in config.options.items():
        if key not in known:
            keys = near_misses(key, [*known, "field", "name", "output", "tap", "weight"])
            raise UsageError(f"{place}: it takes no {key} (found {value}); {keys}")
        found[key] = _checked(f"{place}: {key} = {value!r}", known[key].annotation, value)
    if "temperature" in known and "temperature" not in found:
        found["temperature"] = known["temperature"].default
    if "temperature" in found and not found["temperature"] > 0:
        raise UsageError(f"{place}: temperature = {found['temperature']}: it must be above 0")
    for key, parameter in known.items():
        if parameter.default is inspect.Parameter.empty and key not in found:
            raise UsageError(f"{place}: it needs {key}, a {_plain(parameter.annotation)}")
    return found


def _checked(place: str, annotation: Any, value: Any) -> Any:
    if isinstance(value, list):
        value = tuple(value)
    try:
        return TypeAdapter(annotation, config=_STRICT).validate_python(value)
    except ValidationError as error:
        said = error.errors()[0]["msg"]
        raise UsageError(f"{place}: it takes {_plain(annotation)} ({said})") from None


def _plain(annotation: Any) -> str:
    return str(getattr(annotation, "__name__", annotation)).replace("typing.", "")
