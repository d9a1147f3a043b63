"""One term of an objective: which tensors it takes from the student and the store, and how the loss is called."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
from torch import Tensor, nn

from kdcache.codecs import QuantisedLogits, Targets, flat
from kdcache.errors import UsageError
from kdcache.objectives.gather import global_batch
from kdcache.objectives.shapes import Contest, Shapes
from kdcache.objectives.specs import ObjectiveSpec

__all__ = ["Term", "item"]

T = TypeVar("T")
Shape = tuple[int, ...]


@dataclass(frozen=True)
class Term:
    """One checked term of the sum. `name` is unique: kd, kd.1, ..."""

    name: str
    weight: float
    spec: ObjectiveSpec
    outputs: tuple[str, ...]  # the student's outputs, or the names under which its taps come
    taps: tuple[str, ...]  # module paths of the first of them
    fields: tuple[str, ...]  # the batch's entries that it reads, in the order of the function's arguments
    shapes: tuple[Shape, ...]  # of the stored targets among them, per sample
    options: Mapping[str, Any] = field(default_factory=dict)
    share: float = 1.0  # what a part of the global batch weighs in its mean: of the loss, and of an opponent's too

    @property
    def adapter(self) -> str:
        """The key of its module: a ModuleDict takes no dots."""
        return self.name.replace(".", "_")

    @property
    def labelled(self) -> bool:
        """A mean over the rows with a label, not over all."""
        return self.spec.labelled

    @property
    def on_logits(self) -> bool:
        """Whether it judges the student's logits row by row, so that it can be fused with the last layer."""
        spec = self.spec
        return spec.kind == "classes" and self.outputs == ("logits",) and not (spec.module or spec.together)

    @functools.cached_property
    def function(self) -> Any:
        """The plain function with its options."""
        return functools.partial(self.spec.function, **self.options)

    def module(self, student_shapes: Mapping[str, Shape], classes: int, ids: Any) -> nn.Module | None:
        """What it trains beside the student; None of a plain function."""
        if not self.spec.module:
            return None
        cure = f"give the shape of each of {list(self.outputs)}"
        ours = tuple(item(student_shapes, name, "student's shapes", cure) for name in self.outputs)
        known = np.zeros(0, np.int64) if ids is None else ids
        built: nn.Module = self.spec.function(Shapes(ours, self.shapes, known, classes), **self.options)
        return built

    def entries(self, batch: Mapping[str, Targets], asked: Sequence[str]) -> list[Any]:
        """What it reads of a batch, in order."""
        return [item(batch, name, "batch", f"ask the loader for the fields {list(asked)}") for name in self.fields]

    def shared(self, value: Tensor) -> Tensor:
        """A part's mean as its share of the global batch's."""
        return value if self.share == 1.0 else value * self.share

    def __call__(self, student: Sequence[Tensor], entries: Sequence[Any], module: nn.Module | None) -> Tensor | Contest:
        """Its value for these tensors, in the order of `outputs` and `fields`."""
        ours, theirs = list(student), list(entries)
        if self.spec.kind == "classes" and ours[0].dim() == 3:  # [B, P, C]: every position is a row
            ours, theirs = [one.flatten(0, 1) for one in ours], [_rows(entry) for entry in theirs]
        if self.spec.kind != "classes":
            theirs = [one.dense() if isinstance(one, QuantisedLogits) else one for one in theirs]
        if self.spec.together:
            ours, theirs = [global_batch(one) for one in ours], [global_batch(one) for one in theirs]
        call = module if self.spec.module else self.function
        assert call is not None, "it was built"
        if self.spec.many:
            count = len(self.shapes)
            found: Tensor | Contest = call(ours, theirs[:count], *theirs[count:])
        else:
            found = call(*ours, *theirs)
        return found


def _rows(entry: Targets) -> Targets:
    """Targets [B, P, C] as [B * P, C], labels [B, P] as [B * P]."""
    if isinstance(entry, Tensor) and not entry.is_floating_point():
        return entry.flatten()
    return flat(entry)


def item(found: Mapping[str, T], key: str, place: str, cure: str) -> T:
    """found[key]; UsageError that says what there is."""
    if key not in found:
        raise UsageError(f"no {key!r} in the {place}, only {sorted(found)}: {cure}")
    return found[key]
