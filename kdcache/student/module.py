"""The student, its adapters and its objective as one module: one forward gives the loss, on one process or many."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack

import torch
from torch import Tensor, nn

from kdcache.arrays import Array
from kdcache.codecs import SparseLogits
from kdcache.errors import UsageError
from kdcache.models import InputSpec
from kdcache.objectives import Objective
from kdcache.taps import tap_outputs

__all__ = ["Batch", "Fitted", "first_look", "split_batch"]

Batch = Mapping[str, Tensor | SparseLogits]


class Fitted(nn.Module):
    """Everything that is trained. `DistributedDataParallel` wants every parameter inside one forward, so it is here."""

    def __init__(self, model: nn.Module, adapters: nn.ModuleDict, objective: Objective, spec: InputSpec, hooks: ExitStack) -> None:
        super().__init__()
        self.model, self.adapters = model, adapters
        self._objective, self._spec = objective, spec
        self._tapped = hooks.enter_context(tap_outputs(model, objective.taps))

    def forward(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor], Tensor]:
        """The loss to go backward from, every term's detached value, the logits float32 [B, C]."""
        stored = batch["input"]
        assert isinstance(stored, Tensor)
        logits = self.model(self._spec.apply(stored))
        # Losses and adapters in fp32 whatever the network ran in: KL of fp16 log-probabilities has few right digits.
        with torch.autocast(logits.device.type, enabled=False):
            outputs = {"logits": logits.float(), **{name: value.float() for name, value in self._tapped.items()}}
            loss, terms = self._objective(outputs, batch, self.adapters)
        return loss, terms, outputs["logits"]


def first_look(model: nn.Module, taps: Mapping[str, str], sample: Array, spec: InputSpec, classes: int,
               name: str) -> dict[str, tuple[int, ...]]:
    """Shape per sample of every tap, from one forward of two zero samples; UsageError if the model does not fit the store."""
    x = spec.apply(torch.zeros(2, *sample.shape, dtype=getattr(torch, sample.dtype)))
    model.eval()
    with torch.no_grad(), tap_outputs(model, taps) as tapped:
        try:
            logits = model(x)
        except (RuntimeError, ValueError, TypeError, IndexError) as error:
            raise UsageError(f"{name}: cannot take the store's inputs, {sample} a sample: {str(error).splitlines()[0]}") from error
    if not isinstance(logits, Tensor) or logits.ndim != 2:
        found = list(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise UsageError(f"{name}: gives {found} for 2 samples; a student gives logits [2, {classes}]")
    if logits.shape[1] != classes:
        raise UsageError(f"{name}: gives {logits.shape[1]} outputs, the store has {classes} classes; "
                         f"build it with {classes} outputs")
    return {field: tuple(value.shape[1:]) for field, value in tapped.items()}


def split_batch(batch: Batch, parts: int) -> list[Batch]:
    """The batch's rows in order, cut into at most `parts` micro-batches of nearly equal size."""
    rows = len(batch["id"])
    if parts == 1 or rows <= 1:
        return [batch]
    cuts = [rows * i // parts for i in range(parts + 1)]
    return [{name: value[first:last] for name, value in batch.items()}
            for first, last in zip(cuts, cuts[1:], strict=False) if last > first]
