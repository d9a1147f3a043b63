"""`Objective`: the weighted sum of checked terms, on a batch's logits or fused with the student's last layer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from kdcache.codecs import Targets
from kdcache.errors import UsageError
from kdcache.objectives.adapters import Adapter
from kdcache.objectives.fused import chunked

__all__ = ["Objective", "Term"]

T = TypeVar("T")


@dataclass(frozen=True)
class Term:
    """One checked term of the sum. `name` is unique: kd, kd.1, ..."""

    name: str
    weight: float
    fields: tuple[str, ...]  # the batch's entries that it reads, in the order of the function's arguments
    function: Callable[..., Tensor]  # (student's tensor, *entries) -> scalar
    tap: str | None  # the student's module path
    shape: tuple[int, ...]  # of the first field, per sample
    labelled: bool  # a mean over the rows with a label, not over all

    @property
    def adapter(self) -> str:
        """The key of its adapter: a ModuleDict takes no dots."""
        return self.name.replace(".", "_")


@dataclass(frozen=True)
class Objective:
    """A callable sum of terms over `classes` classes."""

    terms: tuple[Term, ...]
    classes: int

    @property
    def fields(self) -> tuple[str, ...]:
        """The store's fields that a batch must hold, in the order of the terms."""
        return tuple(dict.fromkeys(name for term in self.terms for name in term.fields))

    @property
    def taps(self) -> dict[str, str]:
        """Output name -> module path of the student, one for each term that compares features."""
        return {term.name: term.tap for term in self.terms if term.tap is not None}

    @property
    def needs_labels_only(self) -> bool:
        """True if unlabelled rows are of no use to it."""
        return self.fields == ("label",)

    def adapters(self, student_shapes: Mapping[str, tuple[int, ...]]) -> nn.ModuleDict:
        """Adapters to be trained with the student, from the shape per sample of every output in `taps`."""
        cure = f"give the shape of each of {self.taps}"
        return nn.ModuleDict(
            {
                term.adapter: Adapter(_item(student_shapes, term.name, "student's shapes", cure), term.shape)
                for term in self.terms
                if term.tap is not None
            }
        )

    def __call__(
        self, outputs: Mapping[str, Tensor], batch: Mapping[str, Targets], adapters: nn.ModuleDict
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss to go backward from, float32, and every term's own value: detached, not yet weighted.

        outputs: "logits" [B, C] and one tensor for each of `taps`. batch: one entry for each of `fields`.
        """
        logits = _item(outputs, "logits", "student's outputs", "pass its logits [rows, classes]")
        self._check_classes(logits.shape[-1])
        loss = torch.zeros((), device=logits.device)
        values: dict[str, Tensor] = {}
        for term in self.terms:
            student = logits if term.tap is None else self._feature(term, outputs, adapters)
            value = term.function(student, *self._entries(term, batch))
            loss = loss + term.weight * value
            values[term.name] = value.detach()
        return loss, values

    def fused(
        self,
        hidden: Tensor,
        head: nn.Linear,
        batch: Mapping[str, Targets],
        adapters: nn.ModuleDict,
        chunk_rows: int | None = None,
        *,
        outputs: Mapping[str, Tensor] | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """As calling it with the logits head(hidden), of which at most `chunk_rows` rows (see `chunked`) ever exist.

        hidden [N, D]. batch: entries of N rows, each [N, ...] (see `kdcache.codecs.flat`). outputs: one tensor for each
        of `taps`. The same values and gradients as unfused up to float32 rounding.
        """
        self._check_classes(head.out_features)
        loss = torch.zeros((), device=hidden.device)
        values: dict[str, Tensor] = {}
        on_logits = [term for term in self.terms if term.tap is None]
        entries = {term.name: self._entries(term, batch) for term in self.terms}
        for name, found in entries.items():
            wrong = [len(entry) for entry in found if len(entry) != len(hidden)]
            if wrong and name not in self.taps:
                raise UsageError(f"objective {name}: {wrong[0]} rows of targets for {len(hidden)} hidden states")
        counts = {term.name: _labelled(entries[term.name][-1]) for term in on_logits if term.labelled}

        def part(logits: Tensor, rows: slice) -> Tensor:
            total = logits.new_zeros(())
            for term in on_logits:
                share = len(logits) / len(hidden)
                chosen = [entry[rows] for entry in entries[term.name]]
                value = term.function(logits, *chosen)
                if term.labelled:  # a mean over the labelled rows is none of means over chunks of all rows
                    value = value * (_labelled(chosen[-1]) / counts[term.name] / share)
                values[term.name] = values.get(term.name, 0) + value.detach() * share
                total = total + term.weight * value
            return total

        if on_logits:
            loss = loss + chunked(hidden, head.weight, head.bias, part, chunk_rows)
        for term in self.terms:
            if term.tap is not None:
                value = term.function(self._feature(term, outputs or {}, adapters), *entries[term.name])
                loss = loss + term.weight * value
                values[term.name] = value.detach()
        return loss, {term.name: values.get(term.name, loss.detach().new_zeros(())) for term in self.terms}

    def _check_classes(self, found: int) -> None:
        if found != self.classes:
            raise UsageError(
                f"the student gives {found} outputs, the store's logits have {self.classes} "
                f"classes; set the student's number of outputs to {self.classes}"
            )

    def _entries(self, term: Term, batch: Mapping[str, Targets]) -> list[Any]:
        return [
            _item(batch, name, "batch", f"ask the loader for the fields {list(self.fields)}") for name in term.fields
        ]

    def _feature(self, term: Term, outputs: Mapping[str, Tensor], adapters: nn.ModuleDict) -> Tensor:
        feature = _item(outputs, term.name, "student's outputs", f"run it with the taps {self.taps}")
        adapter = _item(dict(adapters.items()), term.adapter, "adapters", "make them with objective.adapters")
        adapted: Tensor = adapter(feature)
        return adapted


def _labelled(label: Tensor) -> Tensor:
    """How many rows have a label, at least 1."""
    return (label >= 0).sum().clamp(min=1)


def _item(found: Mapping[str, T], key: str, place: str, cure: str) -> T:
    if key not in found:
        raise UsageError(f"no {key!r} in the {place}, only {sorted(found)}: {cure}")
    return found[key]
