"""The losses on logits once more: numpy and math, float64, class by class. Shares no line with kdcache.objectives."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch

from kdcache.codecs import SparseLogits

__all__ = ["Reference", "bucketed", "bucketed_student", "cross", "divergence", "slopes", "softmax", "sparse"]

Reference = Callable[[np.ndarray], float]


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


def sparse(teacher: np.ndarray, k: int) -> SparseLogits:
    """What a lossless top-k codec would give."""
    log_p = np.log(softmax(teacher))
    order = np.argsort(-log_p, axis=1, kind="stable")
    rest = np.take_along_axis(log_p, order[:, k:], axis=1)
    tail = None
    if rest.shape[1]:
        tail = torch.tensor(np.stack([rest.mean(1), rest.var(1), np.log(np.exp(rest).sum(1))], 1), dtype=torch.float32)
    kept = torch.tensor(np.take_along_axis(log_p, order[:, :k], axis=1), dtype=torch.float32)
    return SparseLogits(torch.from_numpy(order[:, :k].copy()), kept, tail, teacher.shape[1])


def bucketed(targets: SparseLogits, temperature: float) -> np.ndarray:
    """p_T [B, K + 1] as the targets state it, in float64; that statement is tested with the codecs."""
    kept, tail = targets.log_probs(temperature)
    return np.exp(torch.cat([kept, tail[:, None]], 1).double().numpy())


def bucketed_student(student: np.ndarray, targets: SparseLogits, temperature: float) -> np.ndarray:
    """q_T [B, K + 1]; the tail is summed class by class."""
    q = softmax(student / temperature)
    rows = []
    for row, kept in zip(q, targets.indices.numpy(), strict=True):
        others = [value for label, value in enumerate(row) if label not in set(kept.tolist())]
        rows.append([*row[kept], math.fsum(others)])
    return np.array(rows)


def cross(p: np.ndarray, q: np.ndarray) -> float:
    return -sum(
        math.fsum(a * math.log(b) for a, b in zip(*rows, strict=True) if a > 0) for rows in zip(p, q, strict=True)
    ) / len(p)


def divergence(p: np.ndarray, q: np.ndarray) -> float:
    return cross(p, q) - cross(p, p)


def slopes(loss: Reference, student: np.ndarray, step: float = 1e-5) -> np.ndarray:
    """Central differences in float64."""
    found = np.zeros_like(student)
    for place in np.ndindex(student.shape):
        nudge = np.zeros_like(student)
        nudge[place] = step
        found[place] = (loss(student + nudge) - loss(student - nudge)) / (2 * step)
    return found
