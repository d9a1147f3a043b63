"""What a loss reads and which stored targets it is defined on: a row of `OBJECTIVES`."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_type_hints

__all__ = ["ObjectiveSpec"]


@dataclass(frozen=True)
class ObjectiveSpec:
    """A loss is called with the student's tensors, what it reads of the store, then the labels and ids if it asks for
    them. Its keyword-only arguments are the keys that [[objective]] may give.

    `kind` is what it compares. "classes": logits [B, C], of which any axes between become rows. "features": outputs of
    the student's modules (taps), or named outputs. "values": named outputs as they are.
    """

    function: Callable[
        ..., Any
    ]  # a plain function; or a module's class, built from Shapes and trained with the student
    kind: Literal["classes", "features", "values"] = "classes"
    output: tuple[str, ...] = ("logits",)  # judged unless the recipe names others
    field: tuple[str, ...] = ("logits",)  # read unless the recipe names others; () = the recipe has to
    label: bool = False  # reads the labels too
    id: bool = False  # reads the samples' ids too
    labelled: bool = False  # a mean over the labelled rows, not over all
    sparse: bool = False  # defined on SparseLogits
    sampled: bool = False  # defined on SampledLogits
    many: bool = False  # the student's tensors are passed as one list, and so are the targets
    teachers: bool = False  # reads the logits of every zipped store unless the recipe names fields
    together: int = 0  # compares the rows of a batch with each other, of which it needs so many

    @property
    def module(self) -> bool:
        """Whether it has parameters or buffers of its own."""
        return isinstance(self.function, type)

    @property
    def options(self) -> Mapping[str, inspect.Parameter]:
        """Its keyword-only parameters, annotations resolved."""
        maker: Any = vars(self.function)["__init__"] if isinstance(self.function, type) else self.function
        hints = get_type_hints(maker)
        parameters = inspect.signature(maker).parameters.values()
        return {p.name: p.replace(annotation=hints[p.name]) for p in parameters if p.kind is p.KEYWORD_ONLY}
