"""What a run's networks are compared by, and how that is worded: accuracy, or for language models perplexity.

A gain is positive where the student is better: points of accuracy won, or perplexity saved.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from kdcache.report.wording import decimals, percent, points, saved

__all__ = ["ACCURACY", "PERPLEXITY", "Measure", "measure_of"]


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


def measure_of(results: Mapping[str, Any]) -> Measure:
    """Perplexity where results.json says so, else accuracy."""
    return PERPLEXITY if results.get("metric") == PERPLEXITY.key else ACCURACY
