"""Residual networks for small images: He et al. 2015, section 4.2, and the wide ones of the distillation literature.

Three stages of n blocks, depth 6n + 2, at full, half and quarter resolution. `shortcut` says what a block adds where
the shape changes: "identity" is the paper's option A (strided subsampling, new channels zero; no parameters), which
its CIFAR results use; "projection" is option B (strided 1x1 convolution and batch norm), which the code of most
distillation papers uses. ResNet-20 for ten classes of 3x32x32 has 269,722 parameters with A and 272,474 with B.
"""

from __future__ import annotations

from typing import Literal, Protocol

from torch import Tensor, nn
from torch.nn.functional import pad, relu

from kdcache.zoo.arguments import choice, image_shape, with_channels

__all__ = [
    "ResNet",
    "resnet8",
    "resnet8x4",
    "resnet14",
    "resnet20",
    "resnet32",
    "resnet32x4",
    "resnet44",
    "resnet56",
    "resnet110",
]

Shortcut = Literal["identity", "projection"]


class Subsample(nn.Module):
    """Option A: every `stride`-th pixel, zeros for the channels that the input lacks."""

    def __init__(self, missing: int, stride: int) -> None:
        super().__init__()
        self.missing = missing
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        return pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.missing))


class Block(nn.Module):
    """relu(shortcut(x) + BN(conv(relu(BN(conv(x)))))), [B, D, H, W] → [B, D', H/stride, W/stride]."""

    def __init__(self, before: int, after: int, stride: int, shortcut: Shortcut) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, after, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(after)
        self.conv2 = nn.Conv2d(after, after, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(after)
        self.shortcut: nn.Module = nn.Identity()
        if before != after or stride != 1:
            if shortcut == "identity":
                self.shortcut = Subsample(after - before, stride)
            else:
                self.shortcut = nn.Sequential(nn.Conv2d(before, after, 1, stride, bias=False), nn.BatchNorm2d(after))

    def forward(self, x: Tensor) -> Tensor:
        y = relu(self.bn1(self.conv1(x)))
        return relu(self.shortcut(x) + self.bn2(self.conv2(y)))


class ResNet(nn.Module):
    """[B, C, H, W] or [B, H, W] → logits. Taps: `layer1` [B, D1, H, W], `layer2`, `layer3` (after ReLU), `pooled`."""

    def __init__(
        self, channels: int, depth: int, stages: tuple[int, int, int, int], shortcut: Shortcut, outputs: int
    ) -> None:
        super().__init__()
        stem, first, second, third = stages
        blocks = (depth - 2) // 6
        self.stem = nn.Sequential(nn.Conv2d(channels, stem, 3, padding=1, bias=False), nn.BatchNorm2d(stem), nn.ReLU())
        self.layer1 = _stage(stem, first, blocks, 1, shortcut)
        self.layer2 = _stage(first, second, blocks, 2, shortcut)
        self.layer3 = _stage(second, third, blocks, 2, shortcut)
        self.pooled = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.head = nn.Linear(third, outputs)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer3(self.layer2(self.layer1(self.stem(with_channels(x)))))
        logits: Tensor = self.head(self.pooled(x))
        return logits


def _stage(before: int, after: int, blocks: int, stride: int, shortcut: Shortcut) -> nn.Sequential:
    first = Block(before, after, stride, shortcut)
    return nn.Sequential(first, *(Block(after, after, 1, shortcut) for _ in range(blocks - 1)))


class Factory(Protocol):
    """A CIFAR ResNet of one depth and width."""

    def __call__(self, input_shape: tuple[int, ...], num_classes: int, *, shortcut: Shortcut = ...) -> ResNet: ...


def _factory(name: str, depth: int, stages: tuple[int, int, int, int], usual: Shortcut) -> Factory:
    def build(input_shape: tuple[int, ...], num_classes: int, *, shortcut: Shortcut = usual) -> ResNet:
        choice(f"zoo:{name}", "shortcut", shortcut, ("identity", "projection"))
        channels, _, _ = image_shape(f"zoo:{name}", input_shape, 4)
        return ResNet(channels, depth, stages, shortcut, num_classes)

    build.__name__ = build.__qualname__ = name
    return build


PLAIN = (16, 16, 32, 64)
WIDE = (32, 64, 128, 256)

resnet8 = _factory("resnet8", 8, PLAIN, "identity")
resnet14 = _factory("resnet14", 14, PLAIN, "identity")
resnet20 = _factory("resnet20", 20, PLAIN, "identity")
resnet32 = _factory("resnet32", 32, PLAIN, "identity")
resnet44 = _factory("resnet44", 44, PLAIN, "identity")
resnet56 = _factory("resnet56", 56, PLAIN, "identity")
resnet110 = _factory("resnet110", 110, PLAIN, "identity")
resnet8x4 = _factory("resnet8x4", 8, WIDE, "projection")
resnet32x4 = _factory("resnet32x4", 32, WIDE, "projection")
