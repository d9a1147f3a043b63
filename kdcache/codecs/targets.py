"""`SparseLogits`: a teacher's k best log-probabilities a row, and a sketch of the rest for every temperature."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from kdcache.errors import UsageError

__all__ = ["SparseLogits"]


@dataclass(frozen=True, eq=False)
class SparseLogits:
    """K kept classes of C for each of B rows. Dense targets need no class: they are a plain tensor [B, C].

    indices      int64 [B, K], distinct within a row, each in [0, num_classes)
    log_p        float32 [B, K], log-probabilities at T = 1, descending
    tail         float32 [B, 3]: mean, variance (divided by the count) and log-sum-exp of the C - K other logits,
                 all relative to the row's log-partition; None where K = C
    num_classes  C
    """

    indices: Tensor
    log_p: Tensor
    tail: Tensor | None
    num_classes: int

    def __post_init__(self) -> None:
        if self.indices.ndim != 2 or self.indices.shape != self.log_p.shape:
            raise UsageError(
                f"SparseLogits: indices {list(self.indices.shape)} and log_p {list(self.log_p.shape)} "
                "must both be [B, K]"
            )
        rows, kept = self.indices.shape
        if not 0 < kept <= self.num_classes:
            raise UsageError(f"SparseLogits: {kept} kept classes of {self.num_classes}; keep 1 to {self.num_classes}")
        found = None if self.tail is None else tuple(self.tail.shape)
        wanted = None if kept == self.num_classes else (rows, 3)
        if found != wanted:
            raise UsageError(
                f"SparseLogits: the tail's shape is {found}, and {kept} kept classes of "
                f"{self.num_classes} need {wanted}"
            )

    @property
    def tail_count(self) -> int:
        """C - K, the classes of a row that are known only as a group."""
        return self.num_classes - self.indices.shape[1]

    @property
    def device(self) -> torch.device:
        return self.log_p.device

    def __len__(self) -> int:
        return self.indices.shape[0]

    def __getitem__(self, rows: Tensor | slice) -> SparseLogits:
        """The rows of a slice, an index tensor or a boolean mask."""
        tail = None if self.tail is None else self.tail[rows]
        return SparseLogits(self.indices[rows], self.log_p[rows], tail, self.num_classes)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> SparseLogits:
        tail = None if self.tail is None else self.tail.to(device, non_blocking=non_blocking)
        return SparseLogits(
            self.indices.to(device, non_blocking=non_blocking),
            self.log_p.to(device, non_blocking=non_blocking),
            tail,
            self.num_classes,
        )

    def log_probs(self, temperature: float) -> tuple[Tensor, Tensor]:
        """Logs of p_T of the kept classes [B, K] and of the tail's total mass [B]; they sum to 1 in each row.

        With b = 1/T and n = C - K, the tail's log-partition is K(b) = log n + mean b + variance b^2 / 2 + c b^3 with
        c such that K(1) is the stored log-sum-exp: exact at T = 1 and as T grows without bound. K is then held
        between the bounds that any n logits obey, so that no rounding or odd distribution takes it far off:
        max(log n + mean b, b K(1)) <= K(b) <= (1 - b) log n + b K(1); for n = 1 they meet and K is exact.
        The tail's log mass is -inf where K = C. UsageError unless 1 <= T < inf.
        """
        if not 1.0 <= temperature < math.inf:
            raise UsageError(
                f"temperature = {temperature}: sparse targets serve 1 <= T < infinity; "
                "for a lower one dump the logits with the dense codec"
            )
        beta = 1.0 / temperature
        scaled = self.log_p * beta
        kept = torch.logsumexp(scaled, dim=1)
        if self.tail is None:
            return scaled - kept[:, None], torch.full_like(kept, -math.inf)
        mean, variance, at_one = self.tail.unbind(1)
        log_n = math.log(self.tail_count)
        cubic = at_one - log_n - mean - variance / 2
        tail = log_n + beta * (mean + beta * (variance / 2 + beta * cubic))
        upper = (1 - beta) * log_n + beta * at_one
        tail = torch.minimum(torch.maximum(tail, torch.maximum(log_n + mean * beta, at_one * beta)), upper)
        log_z = torch.logaddexp(kept, tail)
        return scaled - log_z[:, None], tail - log_z
