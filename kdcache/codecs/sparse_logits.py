"""`SparseLogits`: a teacher's k best log-probabilities a row, and a sketch of the rest for every temperature.

The sketch. With b = 1/T, the n classes of the tail have the log-partition K(b) = log sum exp(b z), z their
log-probabilities at T = 1. K(0) = log n is known, K(1) and K at a few more temperatures are stored, and between them K
is the polynomial in b through all of these. K is convex and convexity is kept: the value is held under the chord of
the two known points around b, and above the chords beside it, drawn on. So K is exact at the stored temperatures and
as T grows without bound, exact everywhere for n = 1, and never far off, whatever was rounded.

Against mean, variance and K(1) in the same bytes, as early stores have them, log Z_T is two to four times nearer at
its worst T in [1, 20]; from about T = 6 on the moments are nearer, at errors of a few thousandths of a nat
(tests/benchmarks/LOG.md, 2026-11-21).
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from kdcache.errors import UsageError

__all__ = ["SparseLogits"]


@dataclass(frozen=True, eq=False)
class SparseLogits:
    """K slots for kept classes of C in each row; axes before the last are rows: [B], or [B, P] for a sequence.

    indices       int64 [..., K], distinct within a row, each in [0, num_classes); in padding that of slot 0
    log_p         float32 [..., K], log-probabilities at T = 1, descending; -inf in padding, which never is in slot 0
    tail          float32 [..., S] of the classes that are not kept, relative to the row's log-partition: log-sum-exp at
                  each of `temperatures`; or, without these, mean, variance (divided by the count) and log-sum-exp at
                  T = 1. None where K = C
    num_classes   C
    temperatures  ascending, the first is 1
    """

    indices: Tensor
    log_p: Tensor
    tail: Tensor | None
    num_classes: int
    temperatures: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        if self.indices.ndim < 2 or self.indices.shape != self.log_p.shape:
            raise UsageError(
                f"SparseLogits: indices {list(self.indices.shape)} and log_p {list(self.log_p.shape)} "
                "must both be [..., K]"
            )
        *rows, kept = self.indices.shape
        if not 0 < kept <= self.num_classes:
            raise UsageError(f"SparseLogits: {kept} kept classes of {self.num_classes}; keep 1 to {self.num_classes}")
        found = None if self.tail is None else tuple(self.tail.shape)
        numbers = 3 if self.temperatures is None else len(self.temperatures)
        wanted = None if kept == self.num_classes else (*rows, numbers)
        if found != wanted:
            raise UsageError(
                f"SparseLogits: the tail's shape is {found}, and {kept} kept classes of "
                f"{self.num_classes} need {wanted}"
            )
        known = self.temperatures or (1.0,)
        if known[0] != 1 or any(not low < high < math.inf for low, high in itertools.pairwise(known)):
            raise UsageError(f"SparseLogits: temperatures {known} must ascend from 1")

    @property
    def tail_count(self) -> int:
        """C - K, the classes of a row without a slot: the least that its tail has, and all of it without padding."""
        return self.num_classes - self.indices.shape[-1]

    @property
    def tail_log_count(self) -> Tensor:
        """Float32 [...]: the log of the number of classes that are known only as a group; -inf for none."""
        padding = (self.log_p == -math.inf).sum(-1)
        return (padding + self.tail_count).to(self.log_p.dtype).log()

    @property
    def shape(self) -> tuple[int, ...]:
        """That of the dense logits which it stands for: [..., C]."""
        return (*self.indices.shape[:-1], self.num_classes)

    @property
    def device(self) -> torch.device:
        return self.log_p.device

    def __len__(self) -> int:
        return self.indices.shape[0]

    def __getitem__(self, rows: Tensor | slice) -> SparseLogits:
        """The rows of a slice, an index tensor or a boolean mask."""
        return self._each(lambda part: part[rows])

    def flatten(self) -> SparseLogits:
        """Every axis before the last made one: [N, K]."""
        return self._each(lambda part: part.flatten(0, -2))

    def to(self, device: torch.device | str, non_blocking: bool = False) -> SparseLogits:
        return self._each(lambda part: part.to(device, non_blocking=non_blocking))

    def _each(self, change: Callable[[Tensor], Tensor]) -> SparseLogits:
        tail = None if self.tail is None else change(self.tail)
        return dataclasses.replace(self, indices=change(self.indices), log_p=change(self.log_p), tail=tail)

    def log_probs(self, temperature: float) -> tuple[Tensor, Tensor]:
        """Logs of p_T of the kept classes [..., K] and of the tail's total mass [...]; they sum to 1 in each row.

        The tail's log mass is -inf where K = C, a kept class's where a slot is padding. UsageError unless 1 <= T < inf.
        """
        scaled, tail = self._log_weights(temperature)
        log_z = torch.logaddexp(torch.logsumexp(scaled, dim=-1), tail)
        return scaled - log_z[..., None], tail - log_z

    def log_z(self, temperature: float) -> Tensor:
        """Log of the sum over all classes of p_1^(1/T), [...]: log p_T = log p_1 / T - log_z(T). As `log_probs`."""
        scaled, tail = self._log_weights(temperature)
        return torch.logaddexp(torch.logsumexp(scaled, dim=-1), tail)

    def _log_weights(self, temperature: float) -> tuple[Tensor, Tensor]:
        """Log-probabilities over T of the kept classes, and the tail's log-partition K(1/T)."""
        if not 1.0 <= temperature < math.inf:
            raise UsageError(
                f"temperature = {temperature}: sparse targets serve 1 <= T < infinity; "
                "for a lower one dump the logits with the dense codec"
            )
        scaled = self.log_p / temperature
        if self.tail is None:
            return scaled, torch.full_like(scaled[..., 0], -math.inf)
        if self.temperatures is None:
            return scaled, _from_moments(self.tail, self.tail_log_count, 1 / temperature)
        nodes = (0.0, *(1 / known for known in reversed(self.temperatures)))
        values = (self.tail_log_count, *self.tail.flip(-1).unbind(-1))
        return scaled, _through(nodes, values, 1 / temperature)


def _through(nodes: tuple[float, ...], values: tuple[Tensor, ...], beta: float) -> Tensor:
    """The polynomial in b through (node, value), at beta in (0, 1], held between the chords that a convex K allows.

    Nodes ascend from 0 to 1.
    """
    place = next(i for i, node in enumerate(nodes) if beta <= node)
    if beta == nodes[place]:
        return values[place]

    def chord(first: int, second: int) -> Tensor:
        share = (beta - nodes[first]) / (nodes[second] - nodes[first])
        return torch.lerp(values[first], values[second], share)

    found = torch.zeros_like(values[0])
    for i, (node, value) in enumerate(zip(nodes, values, strict=True)):
        others = [other for j, other in enumerate(nodes) if j != i]
        found = found + value * math.prod((beta - other) / (node - other) for other in others)
    lowest = values[-1] * beta  # K(b) >= b K(1), since a sum's power is at most the sum of the powers
    if place >= 2:
        lowest = torch.maximum(lowest, chord(place - 2, place - 1))
    if place + 1 < len(nodes):
        lowest = torch.maximum(lowest, chord(place, place + 1))
    return torch.minimum(torch.maximum(found, lowest), chord(place - 1, place))


def _from_moments(tail: Tensor, log_n: Tensor, beta: float) -> Tensor:
    """The sketch of early stores: K(b) = log n + mean b + variance b^2 / 2 + c b^3, with c by the stored K(1).

    Held between bounds that any n logits obey: max(log n + mean b, b K(1)) <= K(b) <= (1 - b) log n + b K(1).
    """
    mean, variance, at_one = tail.unbind(-1)
    cubic = at_one - log_n - mean - variance / 2
    found = log_n + beta * (mean + beta * (variance / 2 + beta * cubic))
    upper = (1 - beta) * log_n + beta * at_one
    return torch.minimum(torch.maximum(found, torch.maximum(log_n + mean * beta, at_one * beta)), upper)
