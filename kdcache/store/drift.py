"""The drift watch: is what the codec loses on a unit still what it loses on unit 0?

A codec is fitted, or chosen, on the first rows of the plan, and its fidelity is stated for unit 0. Every unit measures
the same error on its first rows. With m and s the mean and standard deviation over unit 0's n rows, and n' rows of the
unit, the mean of the unit is

    flagged    above max( 3 m, m + 6 s sqrt(1/n + 1/n'), 1e-6)
    refused    above max(30 m, m + 6 s sqrt(1/n + 1/n'), 1e-3)

The middle term is six standard errors: no unit is named for the luck of its draw. An error of 1e-6 (nats, or a squared
difference of probabilities) is the rounding of a float16; one of 1e-3 does no student harm, however small unit 0's is.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

__all__ = ["FLAGGED", "REFUSED", "drift", "drifted"]

FLAGGED = 3.0
REFUSED = 30.0
_SLIGHT = {FLAGGED: 1e-6, REFUSED: 1e-3}
_STANDARD_ERRORS = 6.0
_KEYS = {"mean", "sd", "rows"}


def drifted(first: Mapping[str, Any], found: Mapping[str, Any], times: float) -> bool:
    """Whether errors `found` {"mean", "sd", "rows"} are out of the range of `first`; `times` is FLAGGED or REFUSED."""
    sampling = _STANDARD_ERRORS * first["sd"] * math.sqrt(1 / first["rows"] + 1 / found["rows"])
    return bool(found["mean"] > max(times * first["mean"], first["mean"] + sampling, _SLIGHT[times]))


def drift(facts: Mapping[int, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """{field: {"units": those out of range, "ratio": the largest mean over unit 0's, "error": unit 0's mean}}.

    `facts`: of each unit, its record's. Only fields with such units; whatever is no error of ours is left out.
    """
    errors = {unit: _errors(table) for unit, table in facts.items()}
    found = {}
    for name, first in errors.get(0, {}).items():
        others = {unit: named[name]["mean"] for unit, named in errors.items()
                  if name in named and drifted(first, named[name], FLAGGED)}  # fmt: skip
        if others:
            ratio = max(others.values()) / max(first["mean"], 1e-12)
            found[name] = {"units": sorted(others), "ratio": ratio, "error": first["mean"]}
    return found


def _errors(facts: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    error = facts.get("error")
    return {name: table for name, table in error.items() if _sound(table)} if isinstance(error, dict) else {}


def _sound(table: Any) -> bool:
    return (
        isinstance(table, dict)
        and table.keys() == _KEYS
        and all(isinstance(table[key], float) and math.isfinite(table[key]) for key in ("mean", "sd"))
        and isinstance(table["rows"], int)
        and table["rows"] > 0
    )
