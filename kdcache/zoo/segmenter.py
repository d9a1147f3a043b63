"""A small U-Net (Ronneberger et al. 2015): a class for every pixel, or for every block of `stride` x `stride` pixels.

Convolutions are padded, unlike the paper's, so that the map keeps the image's size, and have batch norm.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from kdcache.errors import UsageError
from kdcache.zoo.arguments import image_shape, whole_number, whole_numbers, with_channels

__all__ = ["Segmenter", "segmenter"]


class Segmenter(nn.Module):
    """[B, C, H, W] or [B, H, W] → logits [B, P, C], P = (H / stride) (W / stride) places, row by row.

    Taps: `encoder.i` [B, widths[i], H / 2^i, W / 2^i], the last of them the bottom; `decoder.i`, from the bottom up;
    `features` [B, D, H / stride, W / stride], what the head is given.
    """

    def __init__(self, channels: int, widths: Sequence[int], stride: int, outputs: int) -> None:
        super().__init__()
        self.encoder = nn.ModuleList(_convolutions(a, b) for a, b in itertools.pairwise((channels, *widths)))
        self.pool = nn.MaxPool2d(2)
        finest = stride.bit_length() - 1
        rising = list(itertools.pairwise(widths[finest:]))[::-1]
        self.decoder = nn.ModuleList(_convolutions(fine + coarse, fine) for fine, coarse in rising)
        self.features = nn.Identity()
        self.head = nn.Conv2d(widths[finest], outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = with_channels(x)
        maps: list[Tensor] = []
        for stage in self.encoder:
            x = stage(self.pool(x) if maps else x)
            maps.append(x)
        maps.pop()
        for stage in self.decoder:
            skip = maps.pop()
            x = stage(torch.cat([skip, interpolate(x, size=skip.shape[2:], mode="nearest")], dim=1))
        return self.head(self.features(x)).flatten(2).transpose(1, 2)  # type: ignore[no-any-return]


def _convolutions(before: int, after: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(before, after, 3, padding=1, bias=False), nn.BatchNorm2d(after), nn.ReLU(),
        nn.Conv2d(after, after, 3, padding=1, bias=False), nn.BatchNorm2d(after), nn.ReLU(),
    )  # fmt: skip


def segmenter(
    input_shape: tuple[int, ...], num_classes: int, *, widths: Sequence[int] = (16, 32, 64), stride: int = 1
) -> Segmenter:
    """One stage a width, each at half the resolution of the one before; `stride` = 1, 2, 4, ... is the answer's.

    For 3 channels and two classes the defaults have 118,610 parameters.
    """
    stages = whole_numbers("zoo:segmenter", "widths", widths)
    whole_number("zoo:segmenter", "stride", stride)
    if stride & (stride - 1) or stride.bit_length() > len(stages):
        possible = ", ".join(str(2**number) for number in range(len(stages)))
        raise UsageError(f"zoo:segmenter: stride = {stride} must be one of {possible} with {len(stages)} widths")
    channels, height, width = image_shape("zoo:segmenter", input_shape, 2 ** (len(stages) - 1))
    if height % stride or width % stride:
        raise UsageError(f"zoo:segmenter: stride = {stride} must divide both sides of the image, {height}x{width}")
    return Segmenter(channels, stages, stride, num_classes)
