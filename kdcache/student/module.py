"""The student, its adapters and its objective as one module: one forward gives the loss, on one process or many."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from kdcache.arrays import Array
from kdcache.codecs import Targets
from kdcache.errors import KdcacheError, UsageError
from kdcache.models import InputSpec
from kdcache.objectives import Objective
from kdcache.student.language import scored_positions
from kdcache.student.shares import cuts
from kdcache.taps import tap_outputs
from kdcache.views import ViewsSpec, replay_batch
from kdcache.zoo.sequence import is_language_model

__all__ = ["Batch", "Fitted", "network_outputs", "split_batch", "student_shapes"]

Batch = Mapping[str, Targets]


class Fitted(nn.Module):
    """Everything that is trained. `DistributedDataParallel` wants every parameter inside one forward, so it is here.

    `inputs`: the batch's entries that the network is given. `sequences`: rows are tokens, and the network is a language
    model (`check_language_model`). `views`: the batches show one, which is made here of the image and its parameters.
    """

    def __init__(
        self,
        model: nn.Module,
        adapters: nn.ModuleDict,
        objective: Objective,
        spec: InputSpec,
        hooks: ExitStack,
        inputs: tuple[str, ...] = ("input",),
        sequences: bool = False,
        views: ViewsSpec | None = None,
    ) -> None:
        super().__init__()
        self.model, self.adapters = model, adapters
        self._objective, self._spec, self._inputs, self._sequences = objective, spec, inputs, sequences
        self._views = views
        self._tapped = hooks.enter_context(tap_outputs(model, objective.taps))

    def forward(
        self, batch: Batch, factors: tuple[float, ...] | None = None
    ) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor] | None]:
        """The loss to go backward from, every term's detached value, the network's outputs (None of sequences).

        `factors`: one for each term, by which its part of the loss and its values are multiplied.
        """
        objective = self._objective if factors is None else _shared(self._objective, factors)
        if self._sequences:
            return *self._over_positions(batch, objective), None
        if self._views is not None:
            batch = {**batch, "input": replay_batch(batch, self._views)}
        outputs = self._run(lambda: network_outputs(self.model, self._spec, self._inputs, batch), len(batch["id"]))
        # Losses and adapters in fp32 whatever the network ran in: KL of fp16 log-probabilities has few right digits.
        with torch.autocast(next(iter(outputs.values())).device.type, enabled=False):
            tapped = {name: value.float() for name, value in self._tapped.items()}
            loss, terms = objective({**outputs, **tapped}, batch, self.adapters)
        return loss, terms, outputs

    def _over_positions(self, batch: Batch, objective: Objective) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss and terms over the scored positions of sequences, fused with the last layer: no [B, L, V] is made."""
        model = self.model
        assert is_language_model(model)
        scored = self._run(lambda: scored_positions(model, batch), len(batch["id"]))
        targets = {name: scored.of(batch[name]) for name in objective.fields if name != "label"}
        taps = {name: scored.of(value.float()) for name, value in self._tapped.items()}
        return objective.fused(
            scored.hidden, model.head, {**targets, "label": scored.label}, self.adapters, outputs=taps
        )

    def _run(self, network: Callable[[], Any], rows: int) -> Any:
        """The network's own answer; whatever it raises is a UsageError, except that memory ran out."""
        try:
            return network()
        except (KdcacheError, torch.OutOfMemoryError):
            raise
        except Exception as error:  # building it has tried it on two blank samples, in evaluation mode
            mode = "in training" if self.model.training else "in evaluation"
            single = rows == 1 and "more than 1 value per channel" in str(error)  # batch norm
            cure = "; let every micro-batch have two: raise train.batch_size, lower train.accumulate" if single else ""
            raise UsageError(
                f"the network {type(self.model).__name__} raised {type(error).__name__} {mode} "
                f"on {rows} {'row' if rows == 1 else 'rows'}: {error}{cure}"
            ) from error


def _shared(objective: Objective, factors: tuple[float, ...]) -> Objective:
    terms = zip(objective.terms, factors, strict=True)
    return replace(objective, terms=tuple(replace(term, share=factor) for term, factor in terms))


def network_outputs(model: nn.Module, spec: InputSpec, inputs: Sequence[str], batch: Batch) -> dict[str, Tensor]:
    """What the network says of a batch, by name, float32; a network that gives one tensor calls it "logits"."""
    first, *others = (batch[name] for name in inputs)
    assert isinstance(first, Tensor)
    x = spec.apply(first)
    if x.device.type == "cpu" and x.data_ptr() % 64:
        x = x.clone()  # matrix products may round otherwise by their operands' alignment, which resuming changes
    found = model(x, *others)
    named = {"logits": found} if isinstance(found, Tensor) else found
    return {name: value.float() for name, value in named.items()}


def student_shapes(model: nn.Module, taps: Mapping[str, str], samples: Sequence[Array]) -> dict[str, tuple[int, ...]]:
    """Shape per sample of every tap and output, from a forward of two blank samples that draws no random number."""
    training = model.training
    model.eval()
    with torch.no_grad(), torch.random.fork_rng(devices=[]), tap_outputs(model, taps) as tapped:
        first, *others = samples
        blank = [torch.zeros(2, *array.shape, dtype=getattr(torch, array.dtype)) for array in others]
        kind = torch.long if is_language_model(model) else torch.float32
        found = model(torch.zeros(2, *first.shape, dtype=kind), *blank)
        outputs = {"logits": found} if isinstance(found, Tensor) else dict(found)
        shapes = {name: tuple(value.shape[1:]) for name, value in {**outputs, **tapped}.items()}
    model.train(training)
    return shapes


def split_batch(batch: Batch, parts: int) -> list[Batch]:
    """The batch's rows in order, cut into at most `parts` micro-batches of nearly equal size."""
    runs = cuts(len(batch["id"]), parts)
    if len(runs) == 1:
        return [batch]
    return [{name: value[first:last] for name, value in batch.items()} for first, last in runs]
