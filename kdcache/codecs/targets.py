"""`Targets`: what a codec gives back and an objective takes, from a plain dense tensor to the sparse kinds."""

from __future__ import annotations

from typing import TypeAlias

from torch import Tensor

from kdcache.codecs.quantised_logits import QuantisedLogits
from kdcache.codecs.sampled_logits import SampledLogits
from kdcache.codecs.sparse_logits import SparseLogits

__all__ = ["QuantisedLogits", "SampledLogits", "SparseLogits", "Targets", "flat"]

Targets: TypeAlias = Tensor | SparseLogits | SampledLogits | QuantisedLogits


def flat(targets: Targets) -> Targets:
    """Targets [..., C] with every axis before the last made one."""
    return targets.flatten(0, -2) if isinstance(targets, Tensor) else targets.flatten()
