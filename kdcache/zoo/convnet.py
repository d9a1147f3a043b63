"""A plain convolutional network with batch norm and global pooling."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from torch import Tensor, nn

from kdcache.zoo.arguments import image_shape, whole_numbers, with_channels

__all__ = ["ConvNet", "convnet"]


class ConvNet(nn.Module):
    """[B, C, H, W] or [B, H, W] → logits. Taps: `stages.i` [B, widths[i], H/2^(i+1), W/2^(i+1)], `pooled` [B, D]."""

    def __init__(self, channels: int, stages: Sequence[int], outputs: int) -> None:
        super().__init__()
        self.stages = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(before, after, 3, padding=1, bias=False), nn.BatchNorm2d(after), nn.ReLU(), nn.MaxPool2d(2)
            )
            for before, after in itertools.pairwise((channels, *stages))
        )
        self.pooled = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.head = nn.Linear(stages[-1], outputs)

    def forward(self, x: Tensor) -> Tensor:
        x = with_channels(x)
        for stage in self.stages:
            x = stage(x)
        logits: Tensor = self.head(self.pooled(x))
        return logits


def convnet(input_shape: tuple[int, ...], num_classes: int, *, widths: Sequence[int] = (32, 64, 128)) -> ConvNet:
    """One stage a width: 3x3 convolution, batch norm, ReLU, 2x2 max pool; then global average pooling and a head."""
    stages = whole_numbers("zoo:convnet", "widths", widths)
    channels, _, _ = image_shape("zoo:convnet", input_shape, 2 ** len(stages))
    return ConvNet(channels, stages, num_classes)
