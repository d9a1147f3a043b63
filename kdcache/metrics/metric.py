"""`Metric`: a function that judges a network, and what has to be known of it before it is called."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, get_type_hints

__all__ = ["Metric"]


@dataclass(frozen=True)
class Metric:
    """`function(judged, **options) -> {key: number}`; its keyword-only arguments are the options that it takes.

    fields: the store's plain fields that it reads beyond `input`, and "teacher" (see `Judged`). keys: the numbers that
    it gives, of which the first is the one that networks are compared by; () for a function of the user's own, whose
    first number it is then. higher: whether more of that one is better. input: whether it reads the inputs, or passes
    changed ones through the network.
    """

    function: Callable[..., dict[str, float]]
    fields: tuple[str, ...] = ("label",)
    keys: tuple[str, ...] = ()
    higher: bool = True
    input: bool = False

    @property
    def options(self) -> Mapping[str, inspect.Parameter]:
        """Its keyword-only parameters, annotations resolved."""
        parameters = inspect.signature(self.function).parameters.values()
        named = [p for p in parameters if p.kind is p.KEYWORD_ONLY]
        hints: dict[str, Any] = get_type_hints(self.function) if named else {}
        return {p.name: p.replace(annotation=hints.get(p.name, Any)) for p in named}
