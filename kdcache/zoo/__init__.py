"""The networks that a recipe can name as `zoo:NAME`."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from kdcache.zoo.cnn import cnn
from kdcache.zoo.convnet import convnet
from kdcache.zoo.gpt import gpt
from kdcache.zoo.mlp import mlp
from kdcache.zoo.resnet import resnet8x4, resnet20, resnet32, resnet32x4, resnet44, resnet56, resnet110

__all__ = ["ZOO"]

# Each is called as factory(input_shape, num_classes, **args), takes float inputs [B, *input_shape], returns logits;
# a language model takes tokens int64 [B, L] and is what `kdcache.zoo.sequence` says.
ZOO: dict[str, Callable[..., nn.Module]] = {
    "cnn": cnn,
    "convnet": convnet,
    "gpt": gpt,
    "mlp": mlp,
    "resnet110": resnet110,
    "resnet20": resnet20,
    "resnet32": resnet32,
    "resnet32x4": resnet32x4,
    "resnet44": resnet44,
    "resnet56": resnet56,
    "resnet8x4": resnet8x4,
}
