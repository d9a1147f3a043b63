"""A compact anchor-free detector of one stage and one level, after FCOS (Tian et al. 2019).

The map at `stride` pixels has P = (H / stride) (W / stride) places, row by row; the place in row i and column j stands
for the point x = (j + 1/2) stride, y = (i + 1/2) stride of the image. Each place gives logits over the classes, of
which **class 0 is the background**, and the distances in pixels from its point to the left, top, right and bottom side
of its box (equation 1), so that a box is [x - l, y - t, x + r, y + b]. Stages coarser than `stride` are added from the
top down (Lin et al. 2017a), so that a place sees enough of the image. The classes are told apart by one softmax, where
FCOS has a sigmoid each, so that losses on logits mean the same here as elsewhere.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate, softplus

from kdcache.errors import UsageError
from kdcache.zoo.arguments import flag, image_shape, whole_number, whole_numbers, with_channels

__all__ = ["Detector", "cell_centres", "detector"]

_FOREGROUND = 0.01  # the probability that an untrained network gives to all objects together (Lin et al. 2017b)


class Detector(nn.Module):
    """[B, C, H, W] or [B, H, W] → {"logits": [B, P, C], "boxes": [B, P, 4]}, and "centerness" [B, P] where asked for.

    `boxes` are distances l, t, r, b in pixels, not below 0; `centerness` is a logit (FCOS, equation 3). Taps:
    `stages.i` [B, widths[i], H / 2^(i + 1), W / 2^(i + 1)]; `neck`, `class_tower` and `box_tower`
    [B, neck, H / stride, W / stride].
    """

    def __init__(
        self, channels: int, widths: Sequence[int], stride: int, neck: int, depth: int, centerness: bool, outputs: int
    ) -> None:
        super().__init__()
        self.stride = stride
        self.stages = nn.ModuleList(
            nn.Sequential(_convolution(before, after, 2), *(_convolution(after, after) for _ in range(depth)))
            for before, after in itertools.pairwise((channels, *widths))
        )
        self.first = stride.bit_length() - 2
        self.laterals = nn.ModuleList(nn.Conv2d(width, neck, 1) for width in widths[self.first :])
        self.neck = _convolution(neck, neck)
        self.class_tower, self.box_tower = _convolution(neck, neck), _convolution(neck, neck)
        self.classes = nn.Conv2d(neck, outputs, 1)
        self.boxes = nn.Conv2d(neck, 4, 1)
        self.centerness = nn.Conv2d(neck, 1, 1) if centerness else None
        nn.init.zeros_(self.classes.bias)  # type: ignore[arg-type]
        with torch.no_grad():
            self.classes.bias[0] = math.log((1 - _FOREGROUND) / _FOREGROUND * (outputs - 1))  # type: ignore[index]

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = with_channels(x)
        maps: list[Tensor] = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        merged: Tensor | None = None
        for lateral, level in zip(reversed(self.laterals), reversed(maps[self.first :]), strict=True):
            fine = lateral(level)
            merged = fine if merged is None else fine + interpolate(merged, size=fine.shape[2:], mode="nearest")
        neck = self.neck(merged)
        towers = self.class_tower(neck), self.box_tower(neck)
        outputs = {
            "logits": self.classes(towers[0]).flatten(2).transpose(1, 2),
            "boxes": (softplus(self.boxes(towers[1])) * self.stride).flatten(2).transpose(1, 2),
        }
        if self.centerness is not None:
            outputs["centerness"] = self.centerness(towers[1]).flatten(1)
        return outputs


def _convolution(before: int, after: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(before, after, 3, stride, padding=1, bias=False), nn.BatchNorm2d(after), nn.ReLU())


def cell_centres(height: int, width: int, stride: int, device: torch.device | None = None) -> Tensor:
    """The points (x, y) in pixels that the places of an image of `height` x `width` stand for, float32 [P, 2]."""
    y = (torch.arange(height // stride, device=device) + 0.5) * stride
    x = (torch.arange(width // stride, device=device) + 0.5) * stride
    return torch.stack([x.repeat(len(y)), y.repeat_interleave(len(x))], dim=1)


def detector(
    input_shape: tuple[int, ...],
    num_classes: int,
    *,
    widths: Sequence[int] = (16, 32, 64, 96),
    stride: int = 8,
    neck: int = 64,
    depth: int = 1,
    centerness: bool = False,
) -> Detector:
    """One stage a width, each at half the resolution of the one before; `num_classes` counts the background, class 0.

    `depth` is how many convolutions follow the halving one in each stage, `neck` the width of all that comes after.
    For 3 channels and four classes the defaults have 332,792 parameters.
    """
    stages = whole_numbers("zoo:detector", "widths", widths)
    for name, value in {"stride": stride, "neck": neck, "depth": depth}.items():
        whole_number("zoo:detector", name, value)
    if stride < 2 or stride & (stride - 1) or stride.bit_length() > len(stages) + 1:
        possible = ", ".join(str(2 ** (number + 1)) for number in range(len(stages)))
        raise UsageError(f"zoo:detector: stride = {stride} must be one of {possible} with {len(stages)} widths")
    if num_classes < 2:
        raise UsageError("zoo:detector: one class alone would be the background; give at least one class of objects")
    channels, height, width = image_shape("zoo:detector", input_shape, 2 ** len(stages))
    if height % stride or width % stride:
        raise UsageError(f"zoo:detector: stride = {stride} must divide both sides of the image, {height}x{width}")
    return Detector(channels, stages, stride, neck, depth, flag("zoo:detector", "centerness", centerness), num_classes)
