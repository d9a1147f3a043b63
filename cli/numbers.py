"""What a network was measured to be worth, in words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["numbers"]

_FORMS = {
    "accuracy": "accuracy {:.4f}",
    "perplexity": "perplexity {:.2f}",
    "agreement": "agreement with the teacher {:.4f}",
    "loss": "cross-entropy {:.4f} nats",
}
_COUNTS = {"rows", "labelled", "store", "parameters", "steps", "seconds", "samples_per_second", "dumped_rows", "bytes"}


def numbers(facts: Mapping[str, Any]) -> list[str]:
    """`accuracy 0.9300`, ...: the metrics among these facts, those with words of their own first."""
    named = facts.get("metrics")
    others = named if isinstance(named, list) else [key for key in facts if key not in _COUNTS and key not in _FORMS]
    found = [form.format(facts[key]) for key, form in _FORMS.items() if _is_number(facts.get(key))]
    return found + [f"{key} {facts[key]:.4g}" for key in others if key not in _FORMS and _is_number(facts.get(key))]


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
