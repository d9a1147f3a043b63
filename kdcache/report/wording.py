"""How numbers and foreign strings are written, the same on the page, in the pictures and on the terminal."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

__all__ = [
    "NOTHING",
    "amount",
    "count",
    "decimals",
    "objective_words",
    "percent",
    "points",
    "saved",
    "short",
    "spread",
    "visible",
]

NOTHING = "–"


def visible(text: object) -> str:
    """The text with control, bidirectional and other invisible characters spelled out as \\x1b or \\u202e."""
    words = str(text)
    if words.isprintable():
        return words
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in words)


def short(text: object, limit: int) -> str:
    """`visible`, with its middle left out where it is longer than `limit` characters."""
    words = visible(text)
    if len(words) <= limit:
        return words
    head = (limit - 1) * 2 // 3
    return f"{words[:head]}…{words[head + 1 - limit :]}"


def _number(value: object) -> float | None:
    """The value as a finite float, None for anything else."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        return None
    return float(value)


def percent(value: object) -> str:
    """A share in [0, 1] as a percentage with two decimals, without the sign."""
    number = _number(value)
    return NOTHING if number is None else f"{100 * number:.2f}"


def points(value: object) -> str:
    """A difference of shares in percentage points, always signed."""
    number = _number(value)
    if number is None:
        return NOTHING
    return f"{100 * number:+.2f}".replace("-", "−")


def decimals(value: object) -> str:
    """A plain number with two decimals, such as a perplexity."""
    number = _number(value)
    return NOTHING if number is None else f"{number:,.2f}"


def saved(value: object) -> str:
    """A difference of plain numbers, always signed."""
    number = _number(value)
    return NOTHING if number is None else f"{number:+,.2f}".replace("-", "−")


def spread(summary: Mapping[str, Any] | None, form: Any = percent, deviation: Any = percent) -> str:
    """`mean ± sd` of what `summarise` gave; the mean alone where there is one seed."""
    if not isinstance(summary, Mapping):
        return NOTHING
    mean = str(form(summary.get("mean")))
    seeds = summary.get("seeds")
    if mean == NOTHING or not isinstance(seeds, list) or len(seeds) < 2:
        return mean
    return f"{mean} ± {deviation(summary.get('sd'))}"


def count(value: object) -> str:
    """A whole number with separators of thousands."""
    number = _number(value)
    return NOTHING if number is None else f"{number:,.0f}"


def amount(value: object, digits: int = 3) -> str:
    """A measured amount with `digits` significant digits, plain for everyday sizes."""
    number = _number(value)
    if number is None:
        return NOTHING
    if number != 0 and not 1e-4 <= abs(number) < 1e6:
        return f"{number:.{digits - 1}e}".replace("-", "−")
    if number.is_integer():
        return f"{number:,.0f}".replace("-", "−")
    whole = len(str(int(abs(number)))) if abs(number) >= 1 else 0
    if not whole:
        return f"{number:.{digits}g}".replace("-", "−")
    return f"{number:,.{max(0, digits - whole)}f}".replace("-", "−")


def objective_words(objective: object) -> str:
    """`0.9 kd (temperature 2) + 0.1 ce`, from the terms of a student's loss as strings or as the recipe's tables."""
    if not isinstance(objective, (list, tuple)):
        return "" if objective is None else visible(objective)
    return " + ".join(_term(term) for term in objective)


def _worded(value: object) -> str:
    number = _number(value)
    if number is not None:
        return f"{number:g}"
    if isinstance(value, list | tuple) and all(isinstance(one, str) for one in value):
        return visible(" and ".join(value))
    return visible(value if isinstance(value, str) else json.dumps(value, default=str))


def _term(term: object) -> str:
    if not isinstance(term, Mapping):
        return visible(term)
    rest = [
        f"{key} {_worded(value)}" for key, value in term.items() if key not in ("name", "weight") and value is not None
    ]
    weight = term.get("weight", 1.0)
    name = visible(term.get("name", NOTHING))
    factor = "" if weight == 1 else f"{_worded(weight)} "
    return f"{factor}{name}" + (f" ({visible(', '.join(rest))})" if rest else "")
