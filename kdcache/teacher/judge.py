"""What the teacher itself is worth: its accuracy on the evaluation rows, its confidence on the rows of the store."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from kdcache.codecs import QuantisedLogits, SampledLogits, SparseLogits, Targets, flat
from kdcache.config import TeacherConfig
from kdcache.loader import StreamingLoader
from kdcache.metrics import Network, fields_read, measured
from kdcache.store import StoreReader, open_store
from kdcache.teacher.batch import run_batch, token_chunks
from kdcache.teacher.frozen import FrozenTeacher, load_teacher
from kdcache.teacher.planning import input_spec_of

__all__ = ["judge", "network_of"]


def judge(
    config: TeacherConfig,
    weights: Path | None,
    store: Path,
    eval_store: Path | None,
    metrics: Sequence[str] = (),
    options: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """{"accuracy", "predictions" (int [N_eval]), "parameters", "confidence" (top-1 probability at T = 1, [N])}.

    With metrics their numbers instead of the accuracy. Of a language model {"accuracy", "loss" (nats a token),
    "perplexity" (exp of that), "parameters"}.
    """
    with open_store(store) as reader:
        spec = input_spec_of(reader.plan)
        arrays = {name: field.array for name, field in reader.fields.items()}
        teacher = load_teacher(config, arrays, reader.plan.classes, spec, weights)
        if teacher.head is not None:
            return _judge_tokens(teacher, eval_store)
        plain = "logits" if "logits" in arrays else "view01.logits"
        single = len(arrays[plain].shape) == 1 and "target" not in arrays
        confidence = []
        for batch in StreamingLoader(reader, 1024, shuffle=False, fields=[plain]) if single else ():
            confidence.append(_top(flat(batch[plain])))
    facts: dict[str, Any] = {"parameters": sum(p.numel() for p in teacher.model.parameters())}
    if single:
        facts["confidence"] = [round(value, 5) for value in torch.cat(confidence).tolist()]
    if eval_store is None:
        return facts
    with open_store(eval_store) as reader:
        absent = [name for name in config.inputs if name not in reader.fields]
        if absent:
            return facts  # the evaluation rows are for students that are given less
        if metrics:
            fields = fields_read(metrics, config.inputs)
            loader = StreamingLoader(reader, config.batch_size, shuffle=False, fields=fields)
            names = reader.plan.class_names
            facts |= measured(metrics, options or {}, network_of(teacher), loader, class_names=names)
        if not single or "label" not in reader.fields:
            return facts
        return facts | _classified(teacher, reader, plain=not metrics)


def _classified(teacher: FrozenTeacher, reader: StoreReader, plain: bool) -> dict[str, Any]:
    """The class that each evaluation row is given, and where asked the share of labelled ones that are right."""
    right = labelled = 0
    predictions: list[int] = []
    inputs = teacher.config.inputs
    for batch in StreamingLoader(reader, teacher.config.batch_size, shuffle=False, fields=[*inputs, "label"]):
        label, ids = batch["label"], batch["id"]
        assert isinstance(label, Tensor)
        assert isinstance(ids, Tensor)
        first, *others = (batch[name] for name in inputs)
        guess = run_batch(teacher, first, ids.numpy(), None, others)["logits"].argmax(1).cpu()  # type: ignore[arg-type]
        predictions += guess.tolist()
        labelled += int((label >= 0).sum())
        right += int((guess == label).sum())
    found: dict[str, Any] = {"predictions": predictions}
    return {**found, "accuracy": right / labelled if labelled else None} if plain else found


def network_of(teacher: FrozenTeacher) -> Network:
    """Rows of the store -> what the teacher's network says of them, differentiable."""

    def network(rows: dict[str, Tensor]) -> dict[str, Tensor]:
        first, *others = (rows[name].to(teacher.device) for name in teacher.config.inputs)
        spec = teacher.input_spec
        # Integers are stored as such; floats in their place were changed by a metric, in the same units.
        x = spec.standardised(first) if first.is_floating_point() and spec.mean else spec.apply(first)
        said = teacher.model(x, *others)
        named = {"logits": said} if isinstance(said, Tensor) else said
        return {name: value.float() for name, value in named.items()}

    return network


def _judge_tokens(teacher: FrozenTeacher, eval_store: Path | None) -> dict[str, Any]:
    """The same over the scored positions of sequences, whose logits are made in chunks."""
    facts: dict[str, Any] = {"parameters": sum(p.numel() for p in teacher.model.parameters())}
    if eval_store is None:
        return facts
    right, scored, nats = 0, 0, 0.0
    with open_store(eval_store) as reader:
        fields = [name for name in ("input", "segment", "label") if name in reader.fields]
        for batch in StreamingLoader(reader, teacher.config.batch_size, shuffle=False, fields=fields):
            inputs, segment, label, ids = (batch.get(name) for name in ("input", "segment", "label", "id"))
            assert isinstance(inputs, Tensor)
            assert isinstance(label, Tensor)
            assert isinstance(ids, Tensor)
            assert not isinstance(segment, SparseLogits | SampledLogits | QuantisedLogits)
            hidden = run_batch(teacher, inputs, ids.numpy(), segment)["hidden"]
            wanted = label.flatten().long().to(hidden.device)
            for first, last, logits in token_chunks(teacher, hidden, ids.numpy()):
                part = wanted[first:last]
                right += int((logits.argmax(1) == part).sum())
                scored += int((part >= 0).sum())
                nats += float(cross_entropy(logits, part, ignore_index=-1, reduction="sum").double())
    if not scored:
        return facts
    loss = nats / scored
    return {**facts, "accuracy": right / scored, "loss": loss, "perplexity": math.exp(min(loss, 700.0))}


def _top(targets: Targets) -> Tensor:
    """The teacher's largest probability [n]: at T = 1, or of an estimate at the temperature that it is for."""
    if isinstance(targets, SparseLogits):
        return targets.log_p[:, 0].exp()
    if isinstance(targets, SampledLogits):
        return targets.weights.amax(1)
    logits = targets.dense() if isinstance(targets, QuantisedLogits) else targets
    return logits.softmax(1).amax(1)
