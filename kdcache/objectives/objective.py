"""`Objective`: the weighted sum of checked terms, on a batch's outputs or fused with the student's last layer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from kdcache.codecs import Targets
from kdcache.errors import UsageError
from kdcache.objectives.fused import chunked
from kdcache.objectives.shapes import Contest
from kdcache.objectives.term import Term, item

__all__ = ["Objective"]


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
        """Output name -> module path of the student, one for each feature that a term compares."""
        return {name: path for term in self.terms for name, path in zip(term.outputs, term.taps, strict=False)}

    @property
    def needs_labels_only(self) -> bool:
        """True if unlabelled rows are of no use to it."""
        return all(term.labelled and term.fields == ("label",) for term in self.terms)

    @property
    def together(self) -> int:
        """How many rows a batch needs for the terms that compare rows with each other; 0 without any."""
        return max(term.spec.together for term in self.terms)

    def adapters(self, student_shapes: Mapping[str, tuple[int, ...]], ids: Any = None) -> nn.ModuleDict:
        """What is trained with the student and is none of it: adapters, and the modules of terms that have one.

        `student_shapes`: per sample, of every output and tap that such a term takes; `ids` int64 [N] ascending: of all
        samples that it will see.
        """
        built = {term.adapter: term.module(student_shapes, self.classes, ids) for term in self.terms}
        return nn.ModuleDict({name: module for name, module in built.items() if module is not None})

    def __call__(
        self, outputs: Mapping[str, Tensor], batch: Mapping[str, Targets], adapters: nn.ModuleDict
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss to go backward from, float32, and every term's own value: detached, not weighted but by its share.

        outputs: the student's, "logits" [B, C] among them, and one tensor for each of `taps`. batch: one entry for each
        of `fields`. An opponent's loss has its gradient in the sum, but not its value.
        """
        if "logits" in outputs:
            self._check_classes(outputs["logits"].shape[-1])
        loss = torch.zeros((), device=next(iter(outputs.values())).device)
        values: dict[str, Tensor] = {}
        for term in self.terms:
            loss = loss + self._add(term, outputs, term.entries(batch, self.fields), adapters, values)
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
        on_logits = [term for term in self.terms if term.on_logits]
        entries = {term.name: term.entries(batch, self.fields) for term in self.terms}
        for term in on_logits:
            wrong = [len(entry) for entry in entries[term.name] if len(entry) != len(hidden)]
            if wrong:
                raise UsageError(f"objective {term.name}: {wrong[0]} rows of targets for {len(hidden)} hidden states")
        counts = {term.name: _labelled(entries[term.name][-1]) for term in on_logits if term.labelled}

        def part(logits: Tensor, rows: slice) -> Tensor:
            total = logits.new_zeros(())
            for term in on_logits:
                share = len(logits) / len(hidden)
                chosen = [entry[rows] for entry in entries[term.name]]
                value = term.function(logits, *chosen)
                if term.labelled:  # a mean over the labelled rows is none of means over chunks of all rows
                    value = value * (_labelled(chosen[-1]) / counts[term.name] / share)
                value = term.shared(value)
                values[term.name] = values.get(term.name, 0) + value.detach() * share
                total = total + term.weight * value
            return total

        if on_logits:
            loss = loss + chunked(hidden, head.weight, head.bias, part, chunk_rows)
        for term in self.terms:
            if not term.on_logits:
                loss = loss + self._add(term, outputs or {}, entries[term.name], adapters, values)
        return loss, {name: values.get(name, loss.detach().new_zeros(())) for name in self._names}

    @property
    def _names(self) -> list[str]:
        """Of every value, in order: a term's, then its opponent's."""
        contests = {term.name for term in self.terms if hasattr(term.spec.function, "opponent_parameters")}
        return [name for term in self.terms for name in ([term.name, _OPPONENT.format(term.name)]
                if term.name in contests else [term.name])]  # fmt: skip

    def _add(
        self,
        term: Term,
        outputs: Mapping[str, Tensor],
        entries: list[Any],
        adapters: nn.ModuleDict,
        values: dict[str, Tensor],
    ) -> Tensor:
        """A term's part of the sum; its values are added to `values`."""
        cure = f"run it with the taps {self.taps}" if term.taps else "the network gives them under these names"
        student = [item(outputs, name, "student's outputs", cure) for name in term.outputs]
        module = None
        if term.spec.module:
            module = item(dict(adapters.items()), term.adapter, "adapters", "make them with objective.adapters")
        value = term(student, entries, module)
        if isinstance(value, Contest):
            ours, opponent = term.shared(value.student), term.shared(value.opponent)
            values[term.name] = ours.detach()
            values[_OPPONENT.format(term.name)] = opponent.detach()
            # Its gradient trains the opponent; its value is none of what the student is to make small.
            return term.weight * ours + (opponent - opponent.detach())
        value = term.shared(value)
        values[term.name] = value.detach()
        return term.weight * value

    def _check_classes(self, found: int) -> None:
        if found != self.classes:
            raise UsageError(
                f"the student gives {found} outputs, the store's logits have {self.classes} "
                f"classes; set the student's number of outputs to {self.classes}"
            )


_OPPONENT = "{}.opponent"


def _labelled(label: Tensor) -> Tensor:
    """How many rows have a label, at least 1."""
    return (label >= 0).sum().clamp(min=1)
