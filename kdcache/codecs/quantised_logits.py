"""`QuantisedLogits`: all classes of a row as small integers, made floats only for the rows that are being used."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from kdcache.errors import UsageError

__all__ = ["QuantisedLogits"]


@dataclass(frozen=True, eq=False)
class QuantisedLogits:
    """Codes of C classes for each row; axes before the last are rows: [B] or [B, P] (positions of a sequence).

    codes   uint8 [..., C]
    scale   float32 [..., 1]; the logit of a code is code * scale + zero
    zero    float32 [..., 1]
    """

    codes: Tensor
    scale: Tensor
    zero: Tensor

    def __post_init__(self) -> None:
        rows = (*self.codes.shape[:-1], 1)
        if self.codes.ndim < 2 or tuple(self.scale.shape) != rows or tuple(self.zero.shape) != rows:
            raise UsageError(
                f"QuantisedLogits: codes {list(self.codes.shape)}, scale {list(self.scale.shape)} and zero "
                f"{list(self.zero.shape)} must be [..., C], [..., 1] and [..., 1]"
            )

    @property
    def device(self) -> torch.device:
        return self.codes.device

    @property
    def num_classes(self) -> int:
        return self.codes.shape[-1]

    @property
    def shape(self) -> tuple[int, ...]:
        """That of the dense logits which it stands for: [..., C]."""
        return tuple(self.codes.shape)

    def __len__(self) -> int:
        return self.codes.shape[0]

    def __getitem__(self, rows: Tensor | slice) -> QuantisedLogits:
        """The rows of a slice, an index tensor or a boolean mask over the first axis."""
        return QuantisedLogits(self.codes[rows], self.scale[rows], self.zero[rows])

    def flatten(self) -> QuantisedLogits:
        """Every axis before the last made one: [N, C]."""
        return QuantisedLogits(self.codes.flatten(0, -2), self.scale.flatten(0, -2), self.zero.flatten(0, -2))

    def to(self, device: torch.device | str, non_blocking: bool = False) -> QuantisedLogits:
        return QuantisedLogits(
            self.codes.to(device, non_blocking=non_blocking),
            self.scale.to(device, non_blocking=non_blocking),
            self.zero.to(device, non_blocking=non_blocking),
        )

    def dense(self) -> Tensor:
        """Logits float32 [..., C]."""
        return self.codes.float().mul_(self.scale).add_(self.zero)
