"""The student, its adapters and its objective as one module: one forward gives the loss, on one process or many."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from itertools import pairwise

import torch
from torch import Tensor, nn

from kdcache.arrays import Array
from kdcache.codecs import SparseLogits
from kdcache.errors import KdcacheError, UsageError
from kdcache.models import InputSpec
from kdcache.objectives import Objective
from kdcache.taps import tap_outputs

__all__ = ["Batch", "Fitted", "split_batch", "tap_shapes"]

Batch = Mapping[str, Tensor | SparseLogits]


class Fitted(nn.Module):
    """Everything that is trained. `DistributedDataParallel` wants every parameter inside one forward, so it is here."""

    def __init__(
        self, model: nn.Module, adapters: nn.ModuleDict, objective: Objective, spec: InputSpec, hooks: ExitStack
    ) -> None:
        super().__init__()
        self.model, self.adapters = model, adapters
        self._objective, self._spec = objective, spec
        self._tapped = hooks.enter_context(tap_outputs(model, objective.taps))

    def forward(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor], Tensor]:
        """The loss to go backward from, every term's detached value, the logits float32 [B, C]."""
        stored = batch["input"]
        assert isinstance(stored, Tensor)
        x = self._spec.apply(stored)
        if x.device.type == "cpu" and x.data_ptr() % 64:
            x = x.clone()  # matrix products may round otherwise by their operands' alignment, which resuming changes
        logits = self._logits(x)
        # Losses and adapters in fp32 whatever the network ran in: KL of fp16 log-probabilities has few right digits.
        with torch.autocast(logits.device.type, enabled=False):
            outputs = {"logits": logits.float(), **{name: value.float() for name, value in self._tapped.items()}}
            loss, terms = self._objective(outputs, batch, self.adapters)
        return loss, terms, outputs["logits"]

    def _logits(self, x: Tensor) -> Tensor:
        """The network's own answer; whatever it raises is a UsageError, except that memory ran out."""
        try:
            logits: Tensor = self.model(x)
        except (KdcacheError, torch.OutOfMemoryError):
            raise
        except Exception as error:  # building it has tried it on two blank samples, in evaluation mode
            mode = "in training" if self.model.training else "in evaluation"
            single = len(x) == 1 and "more than 1 value per channel" in str(error)  # batch norm
            cure = "; let every micro-batch have two: raise train.batch_size, lower train.accumulate" if single else ""
            raise UsageError(
                f"the network {type(self.model).__name__} raised {type(error).__name__} {mode} "
                f"on {len(x)} {'row' if len(x) == 1 else 'rows'}: {error}{cure}"
            ) from error
        return logits


def tap_shapes(model: nn.Module, taps: Mapping[str, str], sample: Array) -> dict[str, tuple[int, ...]]:
    """Shape per sample of every tap, from a forward of two blank samples that draws no random number."""
    if not taps:
        return {}
    training = model.training
    model.eval()
    with torch.no_grad(), tap_outputs(model, taps) as tapped:
        model(torch.zeros(2, *sample.shape))
        shapes = {name: tuple(value.shape[1:]) for name, value in tapped.items()}
    model.train(training)
    return shapes


def split_batch(batch: Batch, parts: int) -> list[Batch]:
    """The batch's rows in order, cut into at most `parts` micro-batches of nearly equal size."""
    rows = len(batch["id"])
    if parts == 1 or rows <= 1:
        return [batch]
    cuts = [rows * i // parts for i in range(parts + 1)]
    return [
        {name: value[first:last] for name, value in batch.items()} for first, last in pairwise(cuts) if last > first
    ]
