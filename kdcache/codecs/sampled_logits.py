"""`SampledLogits`: a random, unbiased estimate of the teacher's distribution with few classes that are not 0."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from kdcache.errors import UsageError

__all__ = ["SampledLogits"]


@dataclass(frozen=True, eq=False)
class SampledLogits:
    """K classes of C for each row; axes before the last are rows: [B] or [B, P] (positions of a sequence).

    indices      int64 [..., K], distinct within a row where the weight is not 0, each in [0, num_classes)
    weights      float32 [..., K], at least 0: an estimate of p_T with E[weight of class i] = p_T(i); they sum to 1 in
                 each row, and 0 is padding
    temperature  the T at which they were drawn: the only one that they serve
    num_classes  C
    """

    indices: Tensor
    weights: Tensor
    temperature: float
    num_classes: int

    def __post_init__(self) -> None:
        if self.indices.ndim < 2 or self.indices.shape != self.weights.shape:
            raise UsageError(
                f"SampledLogits: indices {list(self.indices.shape)} and weights {list(self.weights.shape)} "
                "must both be [..., K]"
            )

    @property
    def device(self) -> torch.device:
        return self.weights.device

    @property
    def shape(self) -> tuple[int, ...]:
        """That of the dense logits which it stands for: [..., C]."""
        return (*self.indices.shape[:-1], self.num_classes)

    def __len__(self) -> int:
        return self.indices.shape[0]

    def __getitem__(self, rows: Tensor | slice) -> SampledLogits:
        """The rows of a slice, an index tensor or a boolean mask over the first axis."""
        return SampledLogits(self.indices[rows], self.weights[rows], self.temperature, self.num_classes)

    def flatten(self) -> SampledLogits:
        """Every axis before the last made one: [N, K]."""
        return SampledLogits(
            self.indices.flatten(0, -2), self.weights.flatten(0, -2), self.temperature, self.num_classes
        )

    def to(self, device: torch.device | str, non_blocking: bool = False) -> SampledLogits:
        return SampledLogits(
            self.indices.to(device, non_blocking=non_blocking),
            self.weights.to(device, non_blocking=non_blocking),
            self.temperature,
            self.num_classes,
        )
