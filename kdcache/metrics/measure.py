"""All the metrics that a recipe names, on one network: their fields and options checked, their numbers together."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import ConfigDict, TypeAdapter, ValidationError

from kdcache.errors import KdcacheError, UsageError
from kdcache.metrics.judged import Judged
from kdcache.metrics.metric import Metric
from kdcache.metrics.table import find_metric
from kdcache.near_misses import near_misses

__all__ = ["check_options", "measure"]

_STRICT = ConfigDict(strict=True, allow_inf_nan=False)


def measure(names: Iterable[str], judged: Judged) -> dict[str, float]:
    """Every number of every metric, in the order of the names; the first is the one that networks are compared by.

    UsageError for an unknown name or option, a field or output that is not there, or a function of the user's own that
    raises or gives something else than {key: number}.
    """
    metrics = {name: find_metric(name) for name in names}
    options = check_options(metrics, judged.options)
    found: dict[str, float] = {}
    for name, metric in metrics.items():
        for field in metric.fields:
            if field not in judged.rows:
                raise UsageError(
                    f"metric {name}: it needs {field!r}, and the evaluation rows have {sorted(judged.rows)}"
                )
        for key, value in _numbers(name, metric, judged, options).items():
            if key in found:
                raise UsageError(f"metric {name}: a metric before it gives {key!r} too")
            found[key] = value
    return found


def check_options(metrics: Mapping[str, Metric], options: Mapping[str, Any]) -> dict[str, Any]:
    """The options, each of the kind that a metric takes; UsageError for one that none of them takes."""
    known = {key: one for metric in metrics.values() for key, one in metric.options.items()}
    checked = {}
    for key, value in options.items():
        if key not in known:
            raise UsageError(f"no metric of {', '.join(metrics)} takes the option {key}; {near_misses(key, known)}")
        try:
            checked[key] = TypeAdapter(known[key].annotation, config=_STRICT).validate_python(value)
        except ValidationError as error:
            raise UsageError(f"metric option {key} = {value!r}: {error.errors()[0]['msg']}") from None
    return checked


def _numbers(name: str, metric: Metric, judged: Judged, options: Mapping[str, Any]) -> dict[str, float]:
    taken = {key: options[key] for key in metric.options if key in options}
    try:
        found = metric.function(judged, **taken)
    except KdcacheError as error:
        if isinstance(error, UsageError) and type(error) is UsageError and name not in str(error):
            raise UsageError(f"metric {name}: {error}") from error
        raise
    except Exception as error:
        if metric.keys:
            raise
        raise UsageError(f"metric {name}: {type(error).__name__}: {error}") from error
    if not isinstance(found, dict) or not found:
        raise UsageError(f"metric {name}: gives {type(found).__name__}, not a dictionary of numbers")
    try:
        return {str(key): float(value) for key, value in found.items()}
    except (TypeError, ValueError) as error:
        raise UsageError(f"metric {name}: gives what is no number: {error}") from error
