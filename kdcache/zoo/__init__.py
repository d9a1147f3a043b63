"""The networks that a recipe can name as `zoo:NAME`."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from kdcache.zoo.cnn import cnn
from kdcache.zoo.convnet import convnet
from kdcache.zoo.detector import detector
from kdcache.zoo.fused import fused
from kdcache.zoo.gpt import gpt
from kdcache.zoo.graph import gat, gcn
from kdcache.zoo.mlp import mlp
from kdcache.zoo.resnet import (
    resnet8,
    resnet8x4,
    resnet14,
    resnet20,
    resnet32,
    resnet32x4,
    resnet44,
    resnet56,
    resnet110,
)
from kdcache.zoo.segmenter import segmenter
from kdcache.zoo.tcn import tcn
from kdcache.zoo.vit import vit

__all__ = ["ZOO"]

# Each is called as factory(input_shape, num_classes, **args), and with extra_shapes where its signature names them;
# takes float inputs [B, *input_shape]; returns logits, or a mapping of named tensors with "logits" among them.
# A language model takes tokens int64 [B, L] and is what `kdcache.zoo.sequence` says.
ZOO: dict[str, Callable[..., nn.Module]] = {
    "cnn": cnn,
    "convnet": convnet,
    "detector": detector,
    "fused": fused,
    "gat": gat,
    "gcn": gcn,
    "gpt": gpt,
    "mlp": mlp,
    "resnet110": resnet110,
    "resnet14": resnet14,
    "resnet20": resnet20,
    "resnet32": resnet32,
    "resnet32x4": resnet32x4,
    "resnet44": resnet44,
    "resnet56": resnet56,
    "resnet8": resnet8,
    "resnet8x4": resnet8x4,
    "segmenter": segmenter,
    "tcn": tcn,
    "vit": vit,
}
