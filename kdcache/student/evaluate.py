"""Accuracy and cross-entropy of a model over a store, and the held-out loss while it is fitted."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from kdcache.arrays import Array
from kdcache.errors import CheckpointError, UsageError
from kdcache.loader import StreamingLoader
from kdcache.models import InputSpec, WeightsInfo, load_model
from kdcache.store import StoreReader
from kdcache.student.data import Data, open_data
from kdcache.student.module import Batch

__all__ = ["Evaluation", "check_evaluable", "evaluate", "evaluate_run", "evaluate_store", "predict"]

Forward = Callable[[Batch], tuple[Tensor, Tensor | None]]


@dataclass(frozen=True, eq=False)
class Evaluation:
    """Means over the rows seen. `accuracy` and `loss` (cross-entropy, nats) are over labelled rows, None without any;
    `objective` is the mean of the batches' objective, each weighted with its rows."""

    rows: int
    labelled: int
    accuracy: float | None
    loss: float | None
    objective: float | None


def evaluate(
    forward: Forward,
    batches: Iterable[Batch],
    device: torch.device,
    reduce: Callable[[Tensor], Tensor] | None = None,
    predictions: list[Tensor] | None = None,
) -> Evaluation:
    """One pass without gradients. `forward(batch)` gives logits [B, C] and, if wanted, the objective's batch mean.

    Sums stay on the device until the end; `reduce` adds them up over processes. `predictions` collects each batch's
    most likely classes, int64 [B].
    """
    sums = torch.zeros(5, dtype=torch.float64, device=device)
    with torch.inference_mode():
        for batch in batches:
            logits, objective = forward(batch)
            guess = logits.argmax(dim=1)
            if predictions is not None:
                predictions.append(guess)
            rows = len(guess)
            sums[0] += rows
            if objective is not None:
                sums[4] += objective.double() * rows
            label = batch.get("label")
            if isinstance(label, Tensor):
                sums[1] += (label >= 0).sum()
                sums[2] += (guess == label).sum()
                sums[3] += F.cross_entropy(logits.float(), label, ignore_index=-1, reduction="sum").double()
        rows, labelled, right, entropy, objective_sum = (sums if reduce is None else reduce(sums)).tolist()
    return Evaluation(
        int(rows),
        int(labelled),
        right / labelled if labelled else None,
        entropy / labelled if labelled else None,
        objective_sum / rows if rows else None,
    )


def evaluate_store(
    model: nn.Module, info: WeightsInfo, data: Data, device: torch.device, place: Path, batch_size: int = 512
) -> Evaluation:
    """The model's accuracy and cross-entropy over every labelled row of a store; UsageError if the two do not fit."""
    check_evaluable(info.input, info.outputs, data, place)
    model.eval()
    with closing(
        StreamingLoader(data.readers, batch_size, shuffle=False, fields=("input", "label"), device=str(device))
    ) as loader:
        return evaluate(_plain(model, info.input_spec), loader, device)


def check_evaluable(array: Array, outputs: int, data: Data, place: Path) -> None:
    """UsageError unless a network of `place` for these inputs and so many outputs can be evaluated on `data`."""
    if array != data.input:
        raise UsageError(
            f"{place}: was fitted on inputs {array}, and those of {data.place} are {data.input}; "
            "evaluate on a store of the same kind of inputs"
        )
    if outputs != data.classes:
        raise UsageError(
            f"{place}: has {outputs} outputs, and {data.place} has {data.classes} classes; "
            "evaluate on a store with the same classes"
        )
    if not (data.labels >= 0).any():
        raise UsageError(f"{data.place}: no row has a label, so there is nothing to evaluate against")


def predict(
    model: nn.Module, readers: tuple[StoreReader, ...], spec: InputSpec, device: torch.device, batch_size: int = 512
) -> NDArray[np.int64]:
    """The most likely class of every row of a store, int64 [N] in the order of its rows."""
    model.eval()
    guesses: list[Tensor] = []
    with closing(StreamingLoader(readers, batch_size, shuffle=False, fields=("input",), device=str(device))) as loader:
        evaluate(_plain(model, spec), loader, device, predictions=guesses)
        found = np.empty(readers[0].rows, dtype=np.int64)
        found[loader.order(0)[:]] = torch.cat(guesses).cpu().numpy()
    return found


def evaluate_run(run: Path, store: Path, *, allow_import: bool = False) -> dict[str, Any]:
    """The facts of `kdcache eval RUN --store STORE`: {"accuracy", "loss", "rows", "labelled", "store"}.

    `allow_import`: the weights may name package.module:factory, code that is then run to build the network.
    """
    path = run / "model.safetensors"
    if not path.is_file():
        raise CheckpointError(
            f"{run}: holds no model.safetensors, so no fit has finished here; run `kdcache train` first"
        )
    model, info = load_model(path, allow_import=allow_import)
    with open_data([store]) as data:
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        found = evaluate_store(model.to(device), info, data, device, path)
        return {
            "accuracy": found.accuracy,
            "loss": found.loss,
            "rows": found.rows,
            "labelled": found.labelled,
            "store": data.digests[0],
        }


def _plain(model: nn.Module, spec: InputSpec) -> Forward:
    def forward(batch: Batch) -> tuple[Tensor, Tensor | None]:
        stored = batch["input"]
        assert isinstance(stored, Tensor)
        return model(spec.apply(stored)), None

    return forward
