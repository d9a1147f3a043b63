"""What the teacher itself is worth: its accuracy on the evaluation rows, its confidence on the rows of the store."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kdcache.codecs import SparseLogits
from kdcache.config import TeacherConfig
from kdcache.loader import StreamingLoader
from kdcache.store import open_store
from kdcache.teacher.batch import run_batch
from kdcache.teacher.frozen import load_teacher
from kdcache.teacher.planning import input_spec_of

__all__ = ["judge"]


def judge(config: TeacherConfig, weights: Path | None, store: Path, eval_store: Path | None) -> dict[str, Any]:
    """{"accuracy", "predictions" (int [N_eval]), "parameters", "confidence" (top-1 probability at T = 1, [N])}."""
    with open_store(store) as reader:
        spec = input_spec_of(reader.plan)
        teacher = load_teacher(config, reader.fields["input"].array, reader.plan.classes, spec, weights)
        confidence = []
        for batch in StreamingLoader(reader, 1024, shuffle=False, fields=["logits"]):
            logits = batch["logits"]
            top = logits.log_p[:, 0].exp() if isinstance(logits, SparseLogits) else logits.softmax(1).amax(1)
            confidence.append(top)
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
