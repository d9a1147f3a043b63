"""`kdcache objectives` and `kdcache metrics`: what a recipe can name, read off the functions themselves."""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping
from typing import Any

import click

from kdcache.errors import UsageError
from kdcache.near_misses import near_misses

from .options import as_json

__all__ = ["metrics", "objectives"]


@click.command()
@click.argument("name", required=False)
@as_json
def objectives(name: str | None, as_json: bool) -> None:
    """List the losses that [[objective]] can name, or print one's formula, source and options.

    \b
    Example: kdcache objectives rkd_angle
    """
    from kdcache.objectives import OBJECTIVES

    found = {
        key: {
            "compares": spec.kind,
            "reads": [*spec.field, *(["label"] if spec.label else []), *(["id"] if spec.id else [])],
            "options": _options(spec.options),
            "says": inspect.getdoc(spec.function) or "",
        }
        for key, spec in OBJECTIVES.items()
    }
    _show(found, name, "objective", as_json)


@click.command()
@click.argument("name", required=False)
@as_json
def metrics(name: str | None, as_json: bool) -> None:
    """List what networks can be judged by (`metrics = [...]` of a recipe), or print what one is.

    \b
    Example: kdcache metrics window_f1
    """
    from kdcache.metrics import METRICS

    found = {
        key: {
            "gives": list(metric.keys),
            "better": "higher" if metric.higher else "lower",
            "reads": list(metric.fields),
            "options": _options(metric.options),
            "says": inspect.getdoc(metric.function) or "",
        }
        for key, metric in METRICS.items()
    }
    _show(found, name, "metric", as_json)


def _options(parameters: Mapping[str, inspect.Parameter]) -> dict[str, Any]:
    """Default values by name; "required" where there is none."""
    return {
        key: "required" if parameter.default is parameter.empty else parameter.default
        for key, parameter in parameters.items()
    }


def _show(found: dict[str, dict[str, Any]], name: str | None, kind: str, as_json: bool) -> None:
    if name is not None and name not in found:
        raise UsageError(f"{kind} {name!r} is not known; {near_misses(name, found)}")
    chosen = {name: found[name]} if name else found
    if as_json:
        click.echo(json.dumps(chosen, ensure_ascii=False))
        return
    width = max(map(len, found))
    for key, facts in chosen.items():
        options = ", ".join(f"{option} = {json.dumps(value)}" for option, value in facts["options"].items())
        if name is None:
            click.echo(f"{key:<{width}}  {facts['says'].splitlines()[0] if facts['says'] else ''}")
            continue
        click.echo(f"{key}\n\n{facts['says']}\n")
        click.echo(f"options: {options or 'none'}")
        for fact in ("compares", "reads", "gives", "better"):
            if facts.get(fact):
                value = facts[fact]
                click.echo(f"{fact}: {value if isinstance(value, str) else ', '.join(value)}")
