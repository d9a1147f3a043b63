"""`InputSpec`: how stored inputs are scaled for a network."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from kdcache.errors import UsageError

__all__ = ["InputSpec"]


@dataclass(frozen=True)
class InputSpec:
    """How stored inputs become a network's inputs: (x - mean) / std, in the units of the stored values.

    One value, or one per channel; both `None` leaves the values as they are.
    """

    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        mean, std = self.mean, self.std
        if (mean is None) != (std is None):
            raise UsageError(f"input: mean = {mean} and std = {std}: give both or neither")
        if mean is None or std is None:
            return
        if len(mean) != len(std) or not mean:
            raise UsageError(f"input: mean has {len(mean)} values and std has {len(std)}: one a channel in both")
        if not all(map(math.isfinite, mean + std)) or min(std) <= 0:
            raise UsageError(f"input: mean = {mean}, std = {std}: all must be finite, and std above zero")

    def apply(self, x: Tensor) -> Tensor:
        """Float32 [B, ...]: integers standardised (channels: axis 1 of [B, C, H, W]), floats with their values kept."""
        if x.is_floating_point() or self.mean is None or self.std is None:
            return x.float()
        mean, std = self._shaped(x)
        # Measured: converting first and then working in place is the fastest of the ways to write this.
        return x.float().sub_(mean).div_(std)

    def standardised(self, x: Tensor) -> Tensor:
        """(x - mean) / std of floats in the units of stored integers, differentiable; for inputs that were changed."""
        if self.mean is None or self.std is None:
            return x
        mean, std = self._shaped(x)
        return (x - mean) / std

    def _shaped(self, x: Tensor) -> tuple[Tensor, Tensor]:
        assert self.mean is not None
        assert self.std is not None
        channels = x.shape[1] if x.dim() == 4 else 1
        if len(self.mean) not in (1, channels):
            raise UsageError(
                f"input: mean has {len(self.mean)} values, but inputs of shape {list(x.shape[1:])} have {channels} "
                "channels; give one value, or one per channel"
            )
        return _constants(self.mean, self.std, x.device)


@lru_cache(maxsize=64)
def _constants(mean: tuple[float, ...], std: tuple[float, ...], device: torch.device) -> tuple[Tensor, Tensor]:
    # What is made in inference mode could not be used by a later training step.
    with torch.inference_mode(False):
        shape = (-1, 1, 1) if len(mean) > 1 else ()
        return (
            torch.tensor(mean, dtype=torch.float32, device=device).reshape(shape),
            torch.tensor(std, dtype=torch.float32, device=device).reshape(shape),
        )
