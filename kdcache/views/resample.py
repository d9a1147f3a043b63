"""Crop, shift and flip in one pass, in whole numbers: the same bytes on every device, whatever the batch.

A library's `grid_sample` works in floating point, where the order of sums and fused multiplications differ from device
to device and a value half way between two bytes may fall either way. Here every weight is a whole number of 2048ths.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kdcache.views.spec import LERP

__all__ = ["resample"]

_HALF = LERP * LERP // 2


def resample(x: Tensor, crop: Tensor | None = None, shift: Tensor | None = None, flip: Tensor | None = None) -> Tensor:
    """Images uint8 [B, C, H, W], each cropped and resized (bilinear, pixel centres), then shifted, then flipped.

    crop: int32 [B, 4], top, left, height and width of the part that is resized to H × W. Output place i of n along a
    side of which `length` pixels from `start` are taken lies at start + ((2 i + 1) length / n - 1) / 2, held inside
    the part; the distance to the pixel before it is rounded to 2048ths.
    shift: int32 [B, 2], down and right: output place (y, x) takes what would stand at (y + down, x + right), 0 where
    that is outside. flip: int32 [B], 1 exchanges left and right.
    """
    rows = _axis(x.shape[2], *_part(crop, 0), None if shift is None else shift[:, 0], None, x.device)
    columns = _axis(x.shape[3], *_part(crop, 1), None if shift is None else shift[:, 1], flip, x.device)
    if crop is None:
        found = _columns(_rows(x, rows[0]), columns[0])
    else:
        tall = _lerp(_rows(x, rows[0]), _rows(x, rows[1]), rows[2][:, None, :, None])
        wide = _lerp(_columns(tall, columns[0]), _columns(tall, columns[1]), columns[2][:, None, None, :])
        found = wide.add_(_HALF).bitwise_right_shift_(22).to(torch.uint8)
    if shift is not None:
        found = found.mul_(rows[3][:, None, :, None] & columns[3][:, None, None, :])
    return found


def _part(crop: Tensor | None, axis: int) -> tuple[Tensor | None, Tensor | None]:
    return (None, None) if crop is None else (crop[:, axis], crop[:, 2 + axis])


def _axis(
    size: int,
    start: Tensor | None,
    length: Tensor | None,
    shift: Tensor | None,
    flip: Tensor | None,
    device: torch.device,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """For each output place of a side its two input places, the weight of the second in 2048ths, and whether it lies
    inside: [B or 1, size] each."""
    place = torch.arange(size, dtype=torch.int32, device=device)[None]
    if flip is not None:
        place = torch.where(flip[:, None] == 1, size - 1 - place, place)
    if shift is not None:
        place = place + shift[:, None]
    inside = (place >= 0) & (place < size)
    place = place.clamp(0, size - 1)
    if start is None or length is None:
        return place, place, place, inside
    length = length[:, None]
    doubled = (2 * place + 1) * length - size  # twice `size` times the place in the part
    first = doubled.div(2 * size, rounding_mode="floor")
    weight = ((doubled - first * (2 * size)).long() * LERP + size).div(2 * size, rounding_mode="floor").int()
    last = length - 1
    one = torch.minimum(first.clamp(min=0), last) + start[:, None]
    two = torch.minimum((first + 1).clamp(min=0), last) + start[:, None]
    return one, two, weight, inside


def _rows(x: Tensor, places: Tensor) -> Tensor:
    """x [B, C, H, W] with its rows taken from `places` [B or 1, H]: whole rows are copied."""
    batch, channels, height, width = x.shape
    base = torch.arange(batch * channels, device=x.device).view(batch, channels, 1) * height
    return x.reshape(-1, width).index_select(0, (base + places[:, None]).flatten()).view(x.shape)


def _columns(x: Tensor, places: Tensor) -> Tensor:
    """x [B, C, H, W] with its columns taken from `places` [B or 1, W]."""
    batch, channels, height, width = x.shape
    index = places.long()[:, None, :].expand(batch, channels * height, width)
    return x.view(batch, channels * height, width).gather(2, index).view(x.shape)


def _lerp(one: Tensor, two: Tensor, weight: Tensor) -> Tensor:
    """LERP times the weighted mean, int32."""
    one = one.int()
    return two.int().sub_(one).mul_(weight).add_(one.mul_(LERP))
