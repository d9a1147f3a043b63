"""Accuracy and cross-entropy of a model over a store, and the held-out loss while it is fitted."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from kdcache.arrays import Array
from kdcache.errors import CheckpointError, TrustError, UsageError
from kdcache.loader import StreamingLoader
from kdcache.metrics import Network, fields_read, input_range, measured
from kdcache.models import WeightsInfo, load_model
from kdcache.sources.tokenizer import check_same_vocabulary
from kdcache.store import StoreReader
from kdcache.student.data import Data, open_data
from kdcache.student.language import check_language_model, head_chunks, scored_positions
from kdcache.student.module import Batch, network_outputs
from kdcache.student.score import SUMS, has_best, score, teachers_best
from kdcache.zoo.sequence import is_language_model

__all__ = [
    "Evaluation",
    "Measured",
    "check_evaluable",
    "compared_fields",
    "evaluate",
    "evaluate_run",
    "evaluate_store",
    "input_arrays",
    "measure_logits",
    "measure_positions",
    "predict",
]


class Measured(NamedTuple):
    """One batch: its most likely classes int64 [B] (None of sequences), the sums of `score`, the objective's mean and
    what that weighs: the rows, or of sequences the scored positions."""

    guess: Tensor | None
    sums: Tensor
    objective: Tensor | None
    weight: Tensor | int
    sequence: bool = False


Forward = Callable[[Batch], Measured]


@dataclass(frozen=True, eq=False)
class Evaluation:
    """Means over the rows seen, of sequences over their scored positions. `accuracy` and `loss` (cross-entropy, nats)
    are over labelled ones, None without any; `agreement` is the share that the teacher gives the same class, None where
    the store does not keep its choice; `objective` is the mean of the batches' objective."""

    rows: int
    labelled: int
    accuracy: float | None
    loss: float | None
    objective: float | None
    agreement: float | None
    sequences: bool

    def facts(self) -> dict[str, float | None]:
        """{"loss", "accuracy"}, and for sequences {"perplexity" (exp of the loss), "agreement"?}."""
        found = {"loss": self.loss, "accuracy": self.accuracy}
        if self.sequences and self.loss is not None:
            found["perplexity"] = math.exp(min(self.loss, 700.0))
        if self.agreement is not None:
            found["agreement"] = self.agreement
        return found


def evaluate(
    forward: Forward,
    batches: Iterable[Batch],
    device: torch.device,
    reduce: Callable[[Tensor], Tensor] | None = None,
    predictions: list[Tensor] | None = None,
) -> Evaluation:
    """One pass without gradients. `forward` measures a batch.

    Sums stay on the device until the end; `reduce` adds them up over processes. `predictions` collects each batch's
    most likely classes, int64 [B].
    """
    sums = torch.zeros(SUMS + 3, dtype=torch.float64, device=device)
    sequences = False
    with torch.inference_mode():
        for batch in batches:
            found = forward(batch)
            sequences = sequences or found.sequence
            if predictions is not None and found.guess is not None:
                predictions.append(found.guess)
            sums[0] += len(batch["id"])
            sums[3:] += found.sums
            if found.objective is not None:
                sums[1] += found.objective.double() * found.weight
                sums[2] += found.weight
        rows, objective, weight, labelled, right, entropy, compared, agreed = (
            sums if reduce is None else reduce(sums)
        ).tolist()
    return Evaluation(
        int(rows),
        int(labelled),
        right / labelled if labelled else None,
        entropy / labelled if labelled else None,
        objective / weight if weight else None,
        agreed / compared if compared else None,
        sequences,
    )


def measure_logits(batch: Batch, logits: Tensor | None, objective: Tensor | None = None) -> Measured:
    """A batch of single samples, from its logits [B, C], or [B, P, C] with labels [B, P]; nothing of other outputs."""
    label, rows = batch.get("label"), len(batch["id"])
    if logits is None or not isinstance(label, Tensor) or label.shape != logits.shape[:-1]:
        guess = None if logits is None else logits.argmax(dim=-1)
        nothing = torch.zeros(SUMS, dtype=torch.float64, device=batch["id"].device)
        return Measured(guess, nothing, objective, rows)
    guess, sums = score(logits.flatten(0, -2), label.flatten())
    return Measured(guess.reshape(label.shape), sums, objective, rows)


def measure_positions(model: nn.Module, batch: Batch, objective: Tensor | None = None) -> Measured:
    """A batch of sequences over its scored positions, and against `logits` where it has them."""
    assert is_language_model(model)
    scored = scored_positions(model, batch)
    targets = scored.of(batch["logits"]) if "logits" in batch else None
    sums = torch.zeros(SUMS, dtype=torch.float64, device=scored.label.device)
    for logits, part in head_chunks(model, scored):
        best = None if targets is None else teachers_best(targets[part])
        sums += score(logits, scored.label[part], best)[1]
    return Measured(None, sums, objective, len(scored.label), True)


def evaluate_store(
    model: nn.Module, info: WeightsInfo, data: Data, device: torch.device, place: Path, batch_size: int = 512
) -> dict[str, float | None]:
    """{"loss", "accuracy"} of the model over every labelled row of a store, or the metrics that it was fitted for.

    Of sequences the perplexity, and the agreement with the teacher where the store keeps its most likely token.
    UsageError if the two do not fit.
    """
    inputs, metrics = tuple(info.extra.get("inputs", ("input",))), tuple(info.extra.get("metrics", ()))
    options = info.extra.get("metric_options", {})
    check_evaluable(input_arrays(info), info.outputs, info.extra.get("tokenizer"), data, place, metrics)
    model.eval()
    forward: Forward = lambda batch: measure_logits(  # noqa: E731
        batch, network_outputs(model, info.input_spec, inputs, batch).get("logits")
    )
    fields: tuple[str, ...] = (*inputs, "label")
    if data.positions is not None:
        check_language_model(model, info.model, data.input, data.positions, data.outputs)
        fields = ("input", *data.sequence_fields, *compared_fields(data))
        batch_size, forward = max(1, batch_size // 16), lambda batch: measure_positions(model, batch)
    elif metrics:
        fields = fields_read(metrics, inputs)
    with closing(StreamingLoader(data.readers, batch_size, shuffle=False, fields=fields, device=str(device))) as loader:
        if metrics and data.positions is None:
            network, names = _judged(model, info, inputs, device), data.readers[0].plan.class_names
            limits = input_range(info.input)
            return dict(measured(metrics, options, network, loader, class_names=names, input_range=limits))
        return evaluate(forward, loader, device).facts()


def _judged(model: nn.Module, info: WeightsInfo, inputs: Sequence[str], device: torch.device) -> Network:
    """Rows of the store -> the network's outputs; a first input that a metric changed comes as floats, in its units."""
    spec = info.input_spec

    def network(rows: dict[str, Tensor]) -> dict[str, Tensor]:
        batch = {name: rows[name].to(device) for name in inputs}
        first = batch[inputs[0]]
        if first.is_floating_point() and not info.input.dtype.startswith("float"):
            batch[inputs[0]] = spec.standardised(first)
        return network_outputs(model, spec, inputs, batch)

    return network


def compared_fields(data: Data) -> tuple[str, ...]:
    """The teacher's logits, where they tell its most likely class."""
    logits = data.fields.get("logits")
    return ("logits",) if logits is not None and has_best(logits.codec) else ()


def check_evaluable(
    inputs: Sequence[tuple[str, Array]],
    outputs: int,
    tokenizer: Mapping[str, Any] | None,
    data: Data,
    place: Path,
    metrics: Sequence[str] = (),
) -> None:
    """UsageError unless a network of `place` with these inputs and so many outputs can be judged on `data`."""
    found = data.inputs([name for name, _ in inputs])
    for (name, array), theirs in zip(inputs, found, strict=True):
        if array != theirs:
            raise UsageError(
                f"{place}: was fitted on {name} {array}, and that of {data.place} is {theirs}; "
                "evaluate on a store of the same kind of inputs"
            )
    if outputs != data.outputs:
        raise UsageError(
            f"{place}: has {outputs} outputs, and {data.place} has {data.outputs} classes; "
            "evaluate on a store with the same classes"
        )
    if tokenizer is not None:
        check_same_vocabulary(tokenizer, data.tokenizer, f"{place}", data.place)
    for name in metrics if data.positions is None else ():
        for field in fields_read([name], ()):
            if field not in data.fields:
                raise UsageError(
                    f"{data.place}: has no field {field!r}, which the metric {name} reads; evaluate on a store that "
                    "has it"
                )
    if not metrics and not data.labelled.any():
        raise UsageError(f"{data.place}: no row has a label, so there is nothing to evaluate against")


def input_arrays(info: WeightsInfo) -> list[tuple[str, Array]]:
    """(field, array) of everything that the network of a weights file is given."""
    names = info.extra.get("inputs", ("input",))
    return list(zip(names, (info.input, *info.others), strict=True))


def predict(
    model: nn.Module, readers: tuple[StoreReader, ...], info: WeightsInfo, device: torch.device, batch_size: int = 512
) -> NDArray[np.int64]:
    """The most likely class of every row of a store, int64 [N] in the order of its rows; not for sequences."""
    if readers[0].columns.get("label", Array("int64")).shape:
        raise UsageError(f"{readers[0].path}: its rows are sequences, which have no single class; use `kdcache eval`")
    model.eval()
    inputs = tuple(info.extra.get("inputs", ("input",)))
    guesses: list[Tensor] = []

    def forward(batch: Batch) -> Measured:
        return measure_logits(batch, network_outputs(model, info.input_spec, inputs, batch)["logits"])

    with closing(StreamingLoader(readers, batch_size, shuffle=False, fields=inputs, device=str(device))) as loader:
        evaluate(forward, loader, device, predictions=guesses)
        found = np.empty(readers[0].rows, dtype=np.int64)
        found[loader.order(0)[:]] = torch.cat(guesses).cpu().numpy()
    return found


def evaluate_run(run: Path, store: Path, *, allow_import: bool = False) -> dict[str, Any]:
    """The facts of `kdcache eval RUN --store STORE`: those of `evaluate_store`, {"rows", "labelled", "store"}.

    `allow_import`: the weights may name package.module:factory, code that is then run to build the network, or metrics.
    """
    path = run / "model.safetensors"
    if not path.is_file():
        raise CheckpointError(
            f"{run}: holds no model.safetensors, so no fit has finished here; run `kdcache train` first"
        )
    model, info = load_model(path, allow_import=allow_import)
    if not allow_import and (strange := [name for name in info.extra.get("metrics", ()) if ":" in name]):
        raise TrustError(
            f"{path}: names the metric {strange[0]!r}, code that would be run, which is refused; if the file is your "
            "own, allow it (`kdcache eval --allow-code`)"
        )
    with open_data([store]) as data:
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        found = evaluate_store(model.to(device), info, data, device, path)
        labelled = int(data.scored.sum(dtype=np.int64))
        return {**found, "rows": data.rows, "labelled": labelled, "store": data.digests[0]}
