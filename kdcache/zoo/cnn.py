"""The small convolutional network of the CIFAR-10 tutorials."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from torch import Tensor, nn

from kdcache.zoo.arguments import image_shape, whole_number, whole_numbers, with_channels

__all__ = ["CNN", "cnn"]


class CNN(nn.Module):
    """[B, C, H, W] or [B, H, W] → logits.

    Taps: `layers.i`, the map after stage i's ReLU and, but for the last stage, its pooling; `hidden`, [B, hidden]
    after the ReLU.
    """

    def __init__(self, shape: tuple[int, int, int], channels: Sequence[int], hidden: int, outputs: int) -> None:
        super().__init__()
        inputs, height, width = shape
        halvings = len(channels) - 1
        self.layers = nn.ModuleList()
        for stage, (before, after) in enumerate(itertools.pairwise((inputs, *channels))):
            pool = [nn.MaxPool2d(2)] if stage < halvings else []
            self.layers.append(nn.Sequential(nn.Conv2d(before, after, 3, padding=1), nn.ReLU(), *pool))
        flat = channels[-1] * (height >> halvings) * (width >> halvings)
        self.hidden = nn.Sequential(nn.Linear(flat, hidden), nn.ReLU())
        self.head = nn.Linear(hidden, outputs)

    def forward(self, x: Tensor) -> Tensor:
        x = with_channels(x)
        for layer in self.layers:
            x = layer(x)
        logits: Tensor = self.head(self.hidden(x.flatten(1)))
        return logits


def cnn(
    input_shape: tuple[int, ...], num_classes: int, *, channels: Sequence[int] = (32, 64, 64), hidden: int = 64
) -> CNN:
    """3x3 convolutions with ReLU, a 2x2 max pool after each but the last, one hidden dense layer.

    The convolutions are padded, where the tutorials' are not, so that an 8x8 image still has pixels at the end.
    """
    stages = whole_numbers("zoo:cnn", "channels", channels)
    width = whole_number("zoo:cnn", "hidden", hidden)
    return CNN(image_shape("zoo:cnn", input_shape, 2 ** (len(stages) - 1)), stages, width, num_classes)
