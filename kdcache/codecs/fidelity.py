"""How much of the teacher a codec keeps, measured on rows of that teacher: a distance, a gradient, a log-partition.

All in float64 and in chunks of rows, so that memory stays bounded whatever the number of classes. Logits are [..., C]
and targets of the same shape; every axis before the last is rows.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kdcache.codecs.quantised_logits import QuantisedLogits
from kdcache.codecs.sampled_logits import SampledLogits
from kdcache.codecs.sparse_logits import SparseLogits
from kdcache.codecs.targets import Targets, flat
from kdcache.errors import UsageError
from kdcache.keyed import keyed_hash

__all__ = ["LOG_Z_GRID", "fidelity", "gradients", "log_z_error", "log_z_errors", "row_errors", "stand_in"]

LOG_Z_GRID = (1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 16.0, 20.0)
_CHUNK = 1 << 21  # values of a chunk of rows: 16 MiB in float64


def fidelity(
    teacher_logits: Tensor, decoded: Targets, temperatures: Sequence[float] = (1, 2, 4)
) -> dict[str, dict[str, float]]:
    """{"kl": {"1": KL(teacher ‖ decoded) in nats at T = 1, ...}}, the mean over rows.

    For `SampledLogits` the KL says nothing (it is infinite wherever a class was not drawn), so it is
    {"squared_error": {T: mean of ‖p̂ - p‖²}}, the variance of an unbiased estimate, at the T that they were drawn at.
    """
    if isinstance(decoded, SampledLogits):
        error = row_errors(teacher_logits, decoded, decoded.temperature)
        return {"squared_error": {f"{decoded.temperature:g}": float(error.mean())}}
    return {"kl": {f"{t:g}": float(row_errors(teacher_logits, decoded, t).mean()) for t in temperatures}}


def row_errors(teacher_logits: Tensor, decoded: Targets, temperature: float) -> Tensor:
    """float64 [n], one for each row: KL(teacher ‖ decoded) at T in nats, or ‖p̂ - p‖² for `SampledLogits`.

    Sparse targets say nothing of single classes in the tail: its mass is spread evenly over them here, so that the
    number is a divergence over all C classes and comparable between codecs. With the tail taken as one class, as the
    objectives take it, it would be smaller.
    """
    found = []
    for teacher, part in _chunks(teacher_logits, decoded):
        log_p = torch.log_softmax(teacher / temperature, dim=1)
        if isinstance(part, SampledLogits):
            found.append((_weights(part, temperature) - log_p.exp()).square().sum(1))
        else:
            found.append((log_p.exp() * (log_p - _spread(part, temperature))).sum(1))
    return torch.cat(found)


def gradients(teacher_logits: Tensor, student_logits: Tensor, decoded: Targets, temperature: float) -> dict[str, float]:
    """{"cosine", "norm_ratio"}: the student's KD gradient under `decoded` against that under the teacher, mean of rows.

    By the student's logits the gradients are q - p̂ and q - p at T (times T, which cancels). Under sparse targets the
    tail is one class, as in `kd`: its mass is shared among its classes as the student shares it.
    """
    cosine, ratio, count = 0.0, 0.0, 0
    students = flat(student_logits)
    assert isinstance(students, Tensor)
    for teacher, part in _chunks(teacher_logits, decoded):
        log_q = torch.log_softmax(students[count : count + len(teacher)].double() / temperature, dim=1)
        exact = log_q.exp() - torch.softmax(teacher / temperature, dim=1)
        stored = log_q.exp() - _under(part, log_q, temperature)
        norms = exact.norm(dim=1).clamp_min(1e-300), stored.norm(dim=1).clamp_min(1e-300)
        cosine += float(((exact * stored).sum(1) / norms[0] / norms[1]).sum())
        ratio += float((norms[1] / norms[0]).sum())
        count += len(teacher)
    return {"cosine": cosine / count, "norm_ratio": ratio / count}


def stand_in(teacher_logits: Tensor, keys: Tensor | None = None) -> Tensor:
    """Logits of a student that is half-way to the teacher, float64 of the teacher's shape, without any training.

    A student that knew nothing would have gradients in which no codec's error shows; one equal to its teacher,
    gradients that are all error. This one has half of each row's deviation from the row's mean, and noise of half the
    row's standard deviation: it correlates by 0.71 with the teacher, about where students are for most of a fit. The
    noise is uniform, a hash of the row's key and the class, so it is the same whenever and wherever it is drawn.
    `keys` int64, one for each row; default its number.
    """
    rows = flat(teacher_logits)
    assert isinstance(rows, Tensor)
    numbers = np.arange(len(rows), dtype=np.int64) if keys is None else keys.flatten().cpu().numpy()
    classes = np.arange(rows.shape[1], dtype=np.int64)
    found = torch.empty(rows.shape, dtype=torch.float64, device=rows.device)
    for chosen in _slices(rows):
        wide = rows[chosen].double()
        centred = wide - wide.mean(1, keepdim=True)
        hashes = keyed_hash("kdcache-stand-in-1", numbers[chosen, None] * len(classes) + classes)
        uniform = torch.from_numpy((hashes >> np.uint64(11)).astype(np.float64) * 2.0**-53 - 0.5).to(rows.device)
        deviation = centred.square().mean(1, keepdim=True).sqrt()
        found[chosen] = 0.5 * centred + 0.5 * math.sqrt(12) * deviation * uniform
    return found.view(teacher_logits.shape)


def log_z_errors(teacher_logits: Tensor, decoded: SparseLogits, temperatures: Sequence[float] = LOG_Z_GRID) -> Tensor:
    """float64 [n, G]: |log Z_T of the sketch - log Z_T of the teacher|, both relative to log Z at T = 1, in nats."""
    found = []
    for teacher, part in _chunks(teacher_logits, decoded):
        assert isinstance(part, SparseLogits)
        log_p = torch.log_softmax(teacher, dim=1)
        errors = []
        for temperature in temperatures:
            kept, _ = part.log_probs(temperature)
            sketch = part.log_p[:, 0] / temperature - kept[:, 0]
            errors.append((sketch - torch.logsumexp(log_p / temperature, dim=1)).abs())
        found.append(torch.stack(errors, dim=1))
    return torch.cat(found)


def log_z_error(errors: Tensor, temperatures: Sequence[float] = LOG_Z_GRID) -> dict[str, dict[str, float]]:
    """By temperature, of `log_z_errors` [n, G]: `log_z_error` (the 99th percentile), `..._mean` and `..._max`."""
    ordered = errors.sort(0).values
    values = {
        "log_z_error": ordered[math.ceil(0.99 * len(ordered)) - 1],
        "log_z_error_mean": ordered.mean(0),
        "log_z_error_max": ordered[-1],
    }
    return {
        name: {f"{t:g}": float(x) for t, x in zip(temperatures, row.tolist(), strict=True)}
        for name, row in values.items()
    }


def _slices(rows: Tensor) -> Iterator[slice]:
    step = max(1, _CHUNK // rows.shape[1])
    return (slice(first, first + step) for first in range(0, len(rows), step))


def _chunks(teacher_logits: Tensor, decoded: Targets) -> Iterator[tuple[Tensor, Targets]]:
    """Float64 logits [n, C] and the targets of the same rows, their floats made float64 where they are few."""
    rows, targets = flat(teacher_logits), flat(decoded)
    assert isinstance(rows, Tensor)
    if tuple(targets.shape) != tuple(rows.shape):
        raise UsageError(f"the targets are {list(decoded.shape)}, the teacher's logits {list(teacher_logits.shape)}")
    for chosen in _slices(rows):
        yield rows[chosen].double(), _wide(targets[chosen])


def _wide(targets: Targets) -> Targets:
    if isinstance(targets, SparseLogits):
        changes: dict[str, Any] = {"log_p": targets.log_p.double()}
        if targets.tail is not None:
            changes["tail"] = targets.tail.double()
        return dataclasses.replace(targets, **changes)
    return targets


def _spread(targets: Targets, temperature: float) -> Tensor:
    """Log-probabilities float64 [n, C] at T, the tail's mass evenly over its classes."""
    if isinstance(targets, SparseLogits):
        kept, mass, present = _kept(targets, temperature)
        each = mass - (targets.num_classes - present.sum(1)).clamp_min(1).log()
        return each[:, None].repeat(1, targets.num_classes).scatter(1, targets.indices, kept)
    return torch.log_softmax(_dense(targets).double() / temperature, dim=1)


def _under(targets: Targets, log_q: Tensor, temperature: float) -> Tensor:
    """p̂ [n, C] as the student's gradient has it."""
    if isinstance(targets, SparseLogits):
        kept, mass, _ = _kept(targets, temperature)
        tail = log_q.scatter(1, targets.indices, -math.inf)
        share = tail - torch.logsumexp(tail, dim=1, keepdim=True)
        return (share.nan_to_num(nan=-math.inf) + mass[:, None]).scatter(1, targets.indices, kept).exp()
    if isinstance(targets, SampledLogits):
        return _weights(targets, temperature)
    return torch.softmax(_dense(targets).double() / temperature, dim=1)


def _kept(targets: SparseLogits, temperature: float) -> tuple[Tensor, Tensor, Tensor]:
    """Log-probabilities [n, K] at T, the tail's log mass [n], and which slots hold a class.

    A slot that holds none has the class of slot 0, and is given its value: both write the same.
    """
    kept, mass = targets.log_probs(temperature)
    present = kept.isfinite()
    return torch.where(present, kept, kept[:, :1]), mass, present


def _weights(targets: SampledLogits, temperature: float) -> Tensor:
    if temperature != targets.temperature:
        raise UsageError(
            f"temperature = {temperature:g}: the samples were drawn at T = {targets.temperature:g} and serve no other; "
            f"ask for that one, or store the logits with a codec that serves all"
        )
    empty = torch.zeros(targets.shape, dtype=torch.float64, device=targets.device)
    return empty.scatter_add_(1, targets.indices, targets.weights.double())


def _dense(targets: Targets) -> Tensor:
    if isinstance(targets, QuantisedLogits):
        return targets.dense()
    assert isinstance(targets, Tensor)
    return targets
