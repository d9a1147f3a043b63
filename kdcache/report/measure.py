"""What a run's networks are compared by, and how that is worded: accuracy, perplexity, or any other metric.

A gain is positive where the student is better: points of accuracy won, or perplexity saved.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from kdcache.report.wording import NOTHING, amount, decimals, percent, points, saved

__all__ = ["ACCURACY", "PERPLEXITY", "Measure", "measure_of", "measures_of"]


@dataclass(frozen=True)
class Measure:
    """`key` is its name in results.json; `form` writes a value, `gain` a difference."""

    key: str
    heading: str
    gain_heading: str
    lower_is_better: bool
    scale: float
    unit: str  # of a value
    step: str  # of a difference
    form: Callable[[object], str]
    gain: Callable[[object], str]

    def best(self, means: Mapping[str, float]) -> str | None:
        """The name with the best mean, None of none."""
        sign = -1.0 if self.lower_is_better else 1.0
        return max(means, key=lambda name: sign * means[name], default=None)


ACCURACY = Measure("accuracy", "Accuracy, %", "Gain, points", False, 100.0, "%", "points", percent, points)
PERPLEXITY = Measure("perplexity", "Perplexity", "Perplexity saved", True, 1.0, "", "in perplexity", decimals, saved)


_WORDED = {measure.key: measure for measure in (PERPLEXITY, ACCURACY)}


def measure_of(results: Mapping[str, Any]) -> Measure:
    """What results.json says that networks are compared by; accuracy where it says nothing."""
    key = str(results.get("metric") or ACCURACY.key)
    return _WORDED.get(key) or _plain(key, results.get("higher_is_better") is False)


def measures_of(results: Mapping[str, Any]) -> tuple[Measure, ...]:
    """Everything that networks are judged by, what they are compared by first."""
    compared = measure_of(results)
    names = [str(name) for name in results.get("metrics") or ()]
    others = [name for name in names if name != compared.key and name != "loss"]
    return (compared, *(_WORDED.get(name) or _plain(name, False) for name in others))


def _plain(key: str, lower: bool) -> Measure:
    """A metric that has no words of its own: four digits, and differences with their sign."""
    name = key.replace("_", " ")
    return Measure(key, name, f"Gain, {name}", lower, 1.0, "", f"in {name}", _digits, _signed)


def _digits(value: object) -> str:
    return amount(value, 4)


def _signed(value: object) -> str:
    words = amount(value, 3)
    return f"+{words}" if isinstance(value, int | float) and value > 0 and words != NOTHING else words
