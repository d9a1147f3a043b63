"""Colour jitter in whole numbers: every step ends in bytes, so that each can be done anywhere and give the same."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from kdcache.views.spec import FACTOR, HUE_TURN

__all__ = ["brightness", "contrast", "hue", "saturation"]

_LUMA = (77, 150, 29)  # 0.299, 0.587, 0.114 in 256ths
_SIXTH = HUE_TURN // 6


def brightness(x: Tensor, factor: Tensor) -> Tensor:
    """Images uint8 [B, C, H, W] times a factor int32 [B] in 256ths, held below 256."""
    return x.int().mul_(factor.view(-1, 1, 1, 1)).add_(FACTOR // 2).bitwise_right_shift_(8).clamp_(max=255).byte()


def contrast(x: Tensor, factor: Tensor) -> Tensor:
    """Every value moved away from the image's mean grey, or towards it, by a factor int32 [B] in 256ths."""
    grey = _grey(x).flatten(1)
    mean = (grey.sum(1) + grey.shape[1] // 2).div(grey.shape[1], rounding_mode="floor").int()
    return _away_from(x, mean.view(-1, 1, 1, 1), factor)


def saturation(x: Tensor, factor: Tensor) -> Tensor:
    """Every value moved away from its pixel's grey, or towards it, by a factor int32 [B] in 256ths."""
    return _away_from(x, _grey(x), factor)


def hue(x: Tensor, turn: Tensor) -> Tensor:
    """RGB images uint8 [B, 3, H, W] with the hue of HSV moved by `turn` int32 [B], in 3072ths of a whole turn.

    Value and chroma stay as they are; the place within a sixth of the turn is rounded to a 512th.
    """
    wide = x.int()
    red, green, blue = wide.unbind(1)
    top, low = wide.amax(1), wide.amin(1)
    chroma = top - low
    red_top, green_top = top == red, top == green
    apart = torch.where(red_top, green - blue, torch.where(green_top, blue - red, red - green))
    base = torch.where(red_top, 0, torch.where(green_top, 2 * _SIXTH, 4 * _SIXTH))
    within, full = _tables(x.device)
    places = within.take(chroma.mul(511).add_(apart).add_(255).long()).add_(base).add_(turn.view(-1, 1, 1)).long()
    channels = [
        full.take(places + (HUE_TURN + offset)).mul_(chroma).add_(_SIXTH // 2).bitwise_right_shift_(9).add_(low)
        for offset in (0, -2 * _SIXTH, 2 * _SIXTH)
    ]
    return torch.stack(channels, 1).byte()


@lru_cache(maxsize=8)
def _tables(device: torch.device) -> tuple[Tensor, Tensor]:
    """Division is slow, so it is done once: of `apart` by the chroma, int32 [256 * 511], rounded, in 512ths; and how
    full red is at every place from -3072 on, int32 [8193], in 512ths: full within a sixth of hue 0, gone beyond two.

    The sixths begin at red: red to yellow, to green, to cyan, to blue, to magenta, to red.
    """
    with torch.inference_mode(False):
        chroma = torch.arange(256, dtype=torch.int32, device=device)[:, None].clamp(min=1)
        apart = torch.arange(-255, 256, dtype=torch.int32, device=device)
        within = (2 * _SIXTH * apart + chroma).div(2 * chroma, rounding_mode="floor").clamp_(-_SIXTH, _SIXTH)
        place = torch.arange(8193, dtype=torch.int32, device=device).remainder(HUE_TURN)
        full = (2 * _SIXTH - torch.minimum(place, HUE_TURN - place)).clamp_(0, _SIXTH)
        return within, full


def _grey(x: Tensor) -> Tensor:
    """The grey of every pixel in 256ths, int32 [B, 1, H, W]: the luma of three channels, else their mean."""
    if x.shape[1] == 3:
        red, green, blue = x.int().unbind(1)
        return red.mul_(_LUMA[0]).add_(green.mul_(_LUMA[1])).add_(blue.mul_(_LUMA[2]))[:, None]
    total = x.sum(1, dtype=torch.int64, keepdim=True) * FACTOR
    return (total + x.shape[1] // 2).div(x.shape[1], rounding_mode="floor").int()


def _away_from(x: Tensor, grey: Tensor, factor: Tensor) -> Tensor:
    """grey + factor (x - grey), grey in 256ths, rounded and held within a byte."""
    moved = x.int().mul_(256).sub_(grey).mul_(factor.view(-1, 1, 1, 1)).add_(grey * 256 + (1 << 15))
    return moved.bitwise_right_shift_(16).clamp_(0, 255).byte()
