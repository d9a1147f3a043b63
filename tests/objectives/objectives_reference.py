"""The losses on logits once more: numpy and math, float64, class by class. Shares no line with kdcache.objectives."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from torch import Tensor

from kdcache.codecs import QuantisedLogits, SampledLogits, SparseLogits

__all__ = [
    "Reference",
    "agrees",
    "bucketed",
    "bucketed_student",
    "cross",
    "decoupled",
    "divergence",
    "drawn",
    "head_inputs",
    "jensen_shannon",
    "padded",
    "pairs",
    "quantised",
    "slopes",
    "softmax",
    "sparse",
    "sweep",
    "temperatures",
]

Reference = Callable[[np.ndarray], float]

temperatures = st.sampled_from([1.0, 1.5, 2.0, 4.0, 20.0])
sweep = settings(max_examples=25, deadline=None)


@st.composite
def pairs(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    """Student and teacher logits [B, C] that float32 holds exactly."""
    rows, classes = draw(st.integers(1, 4)), draw(st.integers(2, 7))
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    scale = draw(st.sampled_from([0.1, 1.0, 6.0]))
    student, teacher = random.normal(0, scale, (2, rows, classes)).astype(np.float32).astype(np.float64)
    return student, teacher


def agrees(loss: Callable[[Tensor], Tensor], reference: Reference, student: np.ndarray, scale: float = 1) -> None:
    """Value and gradient, within float32's rounding, which `scale` (T, or a weight) multiplies."""
    ours = torch.tensor(student, dtype=torch.float32, requires_grad=True)
    value = loss(ours)
    assert value.shape == ()
    assert value.dtype == torch.float32
    value.backward()
    assert ours.grad is not None
    assert value.item() == pytest.approx(reference(student), rel=2e-5, abs=1e-6 * scale**2)
    np.testing.assert_allclose(ours.grad.numpy(), slopes(reference, student), rtol=2e-4, atol=2e-5 * max(scale / 10, 1))


def head_inputs(rows: int, width: int, classes: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """Hidden states [N, D], a head's weight [V, D] and bias [V], all to be differentiated."""
    generator = torch.Generator().manual_seed(seed)
    shapes = ((rows, width), (classes, width), (classes,))
    return [torch.randn(shape, generator=generator, dtype=dtype).requires_grad_() for shape in shapes]


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


def padded(teacher: np.ndarray, kept: list[int], slots: int) -> SparseLogits:
    """What a lossless top-p codec would give that keeps so many classes of each row, in so many slots, fewer than C."""
    wide = sparse(teacher, slots)
    log_p, indices = wide.log_p.clone(), wide.indices.clone()
    tails = []
    for row, count in enumerate(kept):
        log_p[row, count:], indices[row, count:] = -math.inf, indices[row, 0]
        tail = sparse(teacher[row : row + 1], count).tail
        assert tail is not None
        tails.append(tail)
    return SparseLogits(indices, log_p, torch.cat(tails), teacher.shape[1])


def quantised(teacher: np.ndarray) -> tuple[QuantisedLogits, np.ndarray]:
    """Eight bits a class, and the logits that they stand for."""
    zero = teacher.min(1, keepdims=True).astype(np.float32)
    scale = (np.ptp(teacher, axis=1, keepdims=True) / 255 + 1e-6).astype(np.float32)
    codes = np.clip(np.round((teacher - zero) / scale), 0, 255).astype(np.uint8)
    stands_for = codes.astype(np.float64) * scale.astype(np.float64) + zero.astype(np.float64)
    return QuantisedLogits(torch.from_numpy(codes), torch.from_numpy(scale), torch.from_numpy(zero)), stands_for


def drawn(
    teacher: np.ndarray, temperature: float, draws: int, random: np.random.Generator
) -> tuple[SampledLogits, np.ndarray]:
    """Multinomial counts in slots of any order with padding between them; and the weights of all classes, [B, C]."""
    rows, classes = teacher.shape
    counts = np.stack([random.multinomial(draws, row) for row in softmax(teacher / temperature)])
    indices, weights = np.zeros((rows, classes + 1), dtype=np.int64), np.zeros((rows, classes + 1), dtype=np.float32)
    for row in range(rows):
        places = random.permutation(classes + 1)[:classes]
        indices[row, places], weights[row, places] = np.arange(classes), counts[row] / draws
        indices[row, weights[row] == 0] = random.integers(classes)  # padding may repeat a class that counts
    targets = SampledLogits(torch.from_numpy(indices), torch.from_numpy(weights), temperature, classes)
    return targets, counts / draws


def bucketed(targets: SparseLogits, temperature: float) -> np.ndarray:
    """p_T [B, K + 1] as the targets state it, in float64; that statement is tested with the codecs."""
    kept, tail = targets.log_probs(temperature)
    return np.exp(torch.cat([kept, tail[:, None]], 1).double().numpy())


def bucketed_student(student: np.ndarray, targets: SparseLogits, temperature: float) -> np.ndarray:
    """q_T [B, K + 1], 0 in padded slots; the tail is summed class by class."""
    q = softmax(student / temperature)
    rows = []
    for row, kept, log_p in zip(q, targets.indices.numpy(), targets.log_p.numpy(), strict=True):
        others = [value for label, value in enumerate(row) if label not in set(kept.tolist())]
        rows.append([*np.where(np.isfinite(log_p), row[kept], 0), math.fsum(others)])
    return np.array(rows)


def cross(p: np.ndarray, q: np.ndarray) -> float:
    return -sum(
        math.fsum(a * math.log(b) for a, b in zip(*rows, strict=True) if a > 0) for rows in zip(p, q, strict=True)
    ) / len(p)


def divergence(p: np.ndarray, q: np.ndarray) -> float:
    return cross(p, q) - cross(p, p)


def jensen_shannon(p: np.ndarray, q: np.ndarray, beta: float) -> float:
    mixture = beta * p + (1 - beta) * q
    return beta * divergence(p, mixture) + (1 - beta) * divergence(q, mixture)


def decoupled(p: np.ndarray, q: np.ndarray, label: np.ndarray, alpha: float, beta: float) -> float:
    """DKD without T^2 over [B, M] groups of classes; `label` says which group is the target's, -1 none."""
    total, count = 0.0, 0
    for ours, theirs, target in zip(q, p, label, strict=True):
        if target < 0:
            continue
        count += 1
        others = [group for group in range(len(ours)) if group != target]
        rest_p, rest_q = math.fsum(theirs[others]), math.fsum(ours[others])
        for a, b in ((theirs[target], ours[target]), (rest_p, rest_q)):
            total += alpha * a * math.log(a / b) if a > 0 else 0.0
        for a, b in zip(theirs[others] / rest_p, ours[others] / rest_q, strict=True):
            total += beta * a * math.log(a / b) if a > 0 else 0.0
    return total / max(count, 1)


def slopes(loss: Reference, student: np.ndarray, step: float = 1e-5) -> np.ndarray:
    """Central differences in float64."""
    found = np.zeros_like(student)
    for place in np.ndindex(student.shape):
        nudge = np.zeros_like(student)
        nudge[place] = step
        found[place] = (loss(student + nudge) - loss(student - nudge)) / (2 * step)
    return found
