"""From the outputs of a dense detector to boxes: decoding a grid, and suppressing doubles.

A dense detector gives, at each of P = h * w positions of a grid, row by row, logits of C + 1 classes with the
background at 0, and a box as its four distances l, t, r, b >= 0 in pixels from the position's centre, which is at
((column + 1/2) * stride, (row + 1/2) * stride).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from kdcache.errors import UsageError

__all__ = ["Boxes", "decode", "grid_stride", "kept_boxes", "overlaps"]


class Boxes(NamedTuple):
    """K candidates an image, best first: corners x1 y1 x2 y2 in pixels float32 [N, K, 4], classes from 1 int64 [N, K],
    probabilities float32 [N, K], 0 for what is none."""

    corners: Tensor
    classes: Tensor
    scores: Tensor


def grid_stride(positions: int, height: int, width: int, stride: int | None = None) -> int:
    """The stride of a grid of ceil(height / stride) * ceil(width / stride) positions; unless given, the power of two
    that makes so many. UsageError where none does."""
    for one in [stride] if stride is not None else [1 << power for power in range(11)]:
        if one < 1:
            raise UsageError(f"stride = {one}: at least 1 pixel")
        if -(-height // one) * -(-width // one) == positions:
            return one
    raise UsageError(
        f"{positions} positions are no grid over inputs of {height} x {width} pixels"
        + (" at a stride of a power of two: give `stride`" if stride is None else f" at stride = {stride}")
    )


def decode(logits: Tensor, boxes: Tensor, size: tuple[int, int], stride: int, most: int) -> Boxes:
    """The `most` best pairs of a position and a class, clipped to the image of `size` (height, width).

    logits [N, P, C + 1], boxes [N, P, 4] as above. A position may give a box for several classes.
    """
    height, width = size
    columns = -(-width // stride)
    found = logits.float().softmax(dim=2)[:, :, 1:]
    classes = found.shape[2]
    scores, best = found.flatten(1).topk(min(most, found.shape[1] * classes), dim=1)
    place = best // classes
    x = ((place % columns) + 0.5) * stride
    y = ((place // columns) + 0.5) * stride
    left, top, right, bottom = boxes.float().gather(1, place[:, :, None].expand(-1, -1, 4)).unbind(dim=2)
    corners = torch.stack(
        [
            (x - left).clamp(0, width),
            (y - top).clamp(0, height),
            (x + right).clamp(0, width),
            (y + bottom).clamp(0, height),
        ],
        dim=2,
    )
    return Boxes(corners, best % classes + 1, scores)


def overlaps(ours: Tensor, theirs: Tensor) -> Tensor:
    """Intersection over union of every pair of boxes: [..., K, 4] and [..., M, 4] corners -> [..., K, M], 0 to 1."""
    low = torch.maximum(ours[..., :, None, :2], theirs[..., None, :, :2])
    high = torch.minimum(ours[..., :, None, 2:], theirs[..., None, :, 2:])
    shared = (high - low).clamp(min=0).prod(dim=-1)
    union = _area(ours)[..., :, None] + _area(theirs)[..., None, :] - shared
    return shared / union.clamp(min=torch.finfo(union.dtype).tiny)


def kept_boxes(candidates: Boxes, iou: float, score: float) -> Tensor:
    """bool [N, K]: what greedy non-maximum suppression keeps of candidates that are sorted by score, best first.

    A box goes if a better one of its class that stays overlaps it by more than `iou`; so does one below `score`. All
    images at once: starting with all boxes, "goes if overlapped by one that still stays" is repeated until nothing
    changes; after n rounds the first n boxes are as the greedy loop leaves them, so this ends, and equals it
    (Cluster-NMS, Zheng et al. 2020).
    """
    corners, classes, scores = candidates
    suppresses = (overlaps(corners, corners) > iou) & (classes[:, :, None] == classes[:, None, :])
    possible = scores >= score
    suppresses = suppresses.triu(diagonal=1) & possible[:, :, None]
    kept = possible
    for _ in range(scores.shape[1]):
        again = possible & ~(suppresses & kept[:, :, None]).any(dim=1)
        if torch.equal(again, kept):
            break
        kept = again
    return kept


def _area(corners: Tensor) -> Tensor:
    return (corners[..., 2:] - corners[..., :2]).clamp(min=0).prod(dim=-1)
