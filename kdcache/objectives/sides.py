"""Boxes of a dense detector: four distances l, t, r, b from a position of a grid, in pixels, none below 0.

Boxes of one position share the point that they are measured from, so their intersection is spanned by the smaller and
their common hull by the larger of each two distances.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["generalised_overlap", "grid_centres"]


def grid_centres(positions: int, stride: int, columns: int, like: Tensor) -> Tensor:
    """x and y of each position, row by row, in pixels: ((column + 1/2) * stride, (row + 1/2) * stride), [P, 2]."""
    place = torch.arange(positions, device=like.device)
    return (torch.stack([place % columns, place // columns], dim=1).to(like.dtype) + 0.5) * stride


def generalised_overlap(ours: Tensor, theirs: Tensor) -> Tensor:
    """GIoU = I / U - (H - U) / H, -1 to 1, of boxes [..., 4] of the same positions -> [...].

    Rezatofighi et al. 2019, algorithm 1: I the intersection's area, U the union's, H that of the common hull. 1 for
    equal boxes; of boxes without any area it is -1.
    """
    shared, hull = _area(torch.minimum(ours, theirs)), _area(torch.maximum(ours, theirs))
    union = _area(ours) + _area(theirs) - shared
    least = torch.finfo(union.dtype).eps
    return shared / union.clamp(min=least) - (hull - union) / hull.clamp(min=least) - (hull <= least).to(union.dtype)


def _area(sides: Tensor) -> Tensor:
    left, top, right, bottom = sides.unbind(dim=-1)
    return (left + right) * (top + bottom)
