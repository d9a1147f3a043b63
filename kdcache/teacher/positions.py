"""What is asked of a teacher before the dump: the shapes of its outputs, and of a language model a few positions."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kdcache.errors import UsageError
from kdcache.keyed import keyed_order
from kdcache.models import check_vocabulary
from kdcache.sources import Source, check_same_vocabulary
from kdcache.teacher.batch import run_ids, token_chunks
from kdcache.teacher.frozen import FrozenTeacher

__all__ = ["PILOT_SEQUENCES", "output_shapes", "pilot_logits", "pilot_positions", "position_keys"]

PILOT_SEQUENCES = 128  # of tokens, from which a pilot's positions are drawn


def output_shapes(teacher: FrozenTeacher, source: Source) -> dict[str, tuple[int, ...]]:
    """Shape per sample of `logits` ([C], or [P, V] of a language model) and of every tap, from two samples.

    Raises UsageError where the logits are not one for each class, or one distribution for each label of a row, and
    where teacher and source are known to have different tokenizers.
    """
    ours = getattr(source, "extra", {}).get("tokenizer")
    check_vocabulary(teacher.model, teacher.config.model, ours)
    if teacher.tokenizer and ours and ours["vocabulary"]:
        check_same_vocabulary(ours, teacher.tokenizer, source.name, f"teacher {teacher.config.model}")
    outputs = run_ids(teacher, source, source.ids()[:2])
    if "hidden" not in outputs:
        logits = outputs["logits"]
        if logits.ndim not in (2, 3) or logits.shape[-1] != teacher.outputs:
            raise UsageError(
                f"teacher {teacher.config.model}: gives logits of shape {list(logits.shape[1:])}, expected "
                f"[{teacher.outputs}], one for each class of the source, or that at each of its positions"
            )
        return {name: tuple(value.shape[1:]) for name, value in outputs.items()}
    length, targets = source.arrays["input"].shape[0], outputs.pop("hidden").shape[1]
    labels = source.arrays["label"].shape if "label" in source.arrays else (targets,)
    if labels != (targets,):
        kind, cure = ("causal", "leave out [source] masked") if targets < length else ("masked", "set [source] masked")
        raise UsageError(
            f"teacher {teacher.config.model}: a {kind} language model has {targets} targets for {length} tokens, and "
            f"the source has labels {list(labels)} a row; {cure}"
        )
    return {"logits": (targets, teacher.outputs)} | {name: tuple(value.shape[1:]) for name, value in outputs.items()}


def position_keys(ids: Tensor, targets: int) -> Tensor:
    """id * P + position of every position of the samples `ids` int64 [B], int64 [B * P]; P = `targets`."""
    return (ids[:, None] * targets + torch.arange(targets)).flatten()


def pilot_positions(source: Source, ids: NDArray[np.int64], targets: int, most: int) -> tuple[Tensor, Tensor]:
    """Places int64 [n] among the B * P positions of the samples `ids`, at most `most` of each, and their keys.

    Scored positions are taken where a row has any; which ones depends on nothing but the row, by a keyed hash.
    """
    labels = source.read(ids).get("label")
    keys, rows = [], []
    for row, sample in enumerate(ids.tolist()):
        known = labels is not None and labels[row].shape == (targets,)
        scored = np.flatnonzero(labels[row] >= 0) if labels is not None and known else np.arange(0)
        candidates = sample * targets + (scored if len(scored) else np.arange(targets))
        chosen = np.sort(candidates[keyed_order("kdcache-pilot-1", candidates)[:most]])
        keys.append(chosen)
        rows.append(chosen + (row - sample) * targets)
    return torch.from_numpy(np.concatenate(rows)), torch.from_numpy(np.concatenate(keys))


def pilot_logits(
    teacher: FrozenTeacher, source: Source, ids: NDArray[np.int64], hidden: Tensor, most: int
) -> tuple[Tensor, Tensor]:
    """Logits float32 [n, V] in host memory of at most `most` positions of each row, and their keys int64 [n].

    `hidden` [B, P, D] is what the teacher gave for the samples `ids`. The positions are those of `pilot_positions`.
    """
    targets = hidden.shape[1]
    places, keys = pilot_positions(source, ids, targets, most)
    picked = hidden.flatten(0, 1)[places.to(hidden.device)][:, None]
    logits = [values.cpu() for _, _, values in token_chunks(teacher, picked, ids[(places // targets).numpy()])]
    return torch.cat(logits), keys
