"""What the teacher itself is worth: its accuracy on the evaluation rows, its confidence on the rows of the store."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from kdcache.codecs import QuantisedLogits, SampledLogits, SparseLogits, Targets, flat
from kdcache.config import TeacherConfig
from kdcache.loader import StreamingLoader
from kdcache.store import open_store
from kdcache.teacher.batch import run_batch, token_chunks
from kdcache.teacher.frozen import FrozenTeacher, load_teacher
from kdcache.teacher.planning import input_spec_of

__all__ = ["judge"]


def judge(config: TeacherConfig, weights: Path | None, store: Path, eval_store: Path | None) -> dict[str, Any]:
    """{"accuracy", "predictions" (int [N_eval]), "parameters", "confidence" (top-1 probability at T = 1, [N])}.

    Of a language model {"accuracy", "loss" (nats a token), "perplexity" (exp of that), "parameters"}.
    """
    with open_store(store) as reader:
        spec = input_spec_of(reader.plan)
        teacher = load_teacher(config, reader.fields["input"].array, reader.plan.classes, spec, weights)
        if teacher.head is not None:
            return _judge_tokens(teacher, eval_store)
        confidence = []
        for batch in StreamingLoader(reader, 1024, shuffle=False, fields=["logits"]):
            confidence.append(_top(flat(batch["logits"])))
    facts: dict[str, Any] = {
        "parameters": sum(p.numel() for p in teacher.model.parameters()),
        "confidence": [round(value, 5) for value in torch.cat(confidence).tolist()],
    }
    if eval_store is None:
        return facts
    right = labelled = 0
    predictions: list[int] = []
    with open_store(eval_store) as reader:
        for batch in StreamingLoader(reader, config.batch_size, shuffle=False, fields=["input", "label"]):
            inputs, label, ids = batch["input"], batch["label"], batch["id"]
            assert isinstance(inputs, Tensor)
            assert isinstance(label, Tensor)
            assert isinstance(ids, Tensor)
            guess = run_batch(teacher, inputs, ids.numpy())["logits"].argmax(1).cpu()
            predictions += guess.tolist()
            labelled += int((label >= 0).sum())
            right += int((guess == label).sum())
    return {**facts, "accuracy": right / labelled if labelled else None, "predictions": predictions}


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
