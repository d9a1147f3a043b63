"""How good predictions are, as sums that add up over batches and processes."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from kdcache.codecs import QuantisedLogits, SparseLogits, Targets

__all__ = ["SUMS", "has_best", "score", "teachers_best"]

SUMS = 5


def score(logits: Tensor, label: Tensor | None, best: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """(the most likely classes int64 [N], sums float64 [5]) of logits [N, C].

    The sums: rows with a label, rows that are right, cross-entropy in nats, rows with a teacher's `best` class, rows
    that agree with it. label int [N], -1 = none; best int64 [N].
    """
    guess = logits.argmax(dim=1)
    sums = torch.zeros(SUMS, dtype=torch.float64, device=logits.device)
    if label is not None:
        sums[0] = (label >= 0).sum()
        sums[1] = (guess == label).sum()
        sums[2] = F.cross_entropy(logits.float(), label, ignore_index=-1, reduction="sum").double()
    if best is not None:
        sums[3] = len(best)
        sums[4] = (guess == best).sum()
    return guess, sums


def has_best(codec: str) -> bool:
    """Whether what a codec keeps tells the teacher's most likely class: random draws do not."""
    return codec not in ("sampled", "threshold")


def teachers_best(targets: Targets) -> Tensor | None:
    """The teacher's most likely class, int64 [N], of targets [N, C]; None where they do not tell."""
    if isinstance(targets, Tensor):
        return targets.argmax(dim=-1)
    if isinstance(targets, SparseLogits):
        return targets.indices[..., 0]
    return targets.dense().argmax(dim=-1) if isinstance(targets, QuantisedLogits) else None
