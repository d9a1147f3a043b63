"""Vectors of length 1, of which losses compare the direction only."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["unit"]


def unit(vectors: Tensor, axis: int) -> Tensor:
    """x / |x|_2 along an axis; 0 stays 0, with a finite gradient.

    There is no epsilon beside the norm: it would shrink short vectors, and so the scale would matter.
    """
    norm = torch.linalg.vector_norm(vectors, dim=axis, keepdim=True)
    return vectors / torch.where(norm > 0, norm, 1)
