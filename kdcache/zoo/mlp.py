"""A multi-layer perceptron for inputs of any shape."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

from torch import Tensor, nn

from kdcache.zoo.arguments import share, whole_numbers

__all__ = ["MLP", "mlp"]


class MLP(nn.Module):
    """[B, *shape] → logits [B, C]. Tap `layers.i` is hidden layer i after ReLU and dropout, [B, hidden[i]]."""

    def __init__(self, inputs: int, hidden: Sequence[int], outputs: int, dropout: float = 0.0) -> None:
        super().__init__()
        sizes = (inputs, *hidden)
        drop = [nn.Dropout(dropout)] if dropout else []
        self.layers = nn.ModuleList(
            nn.Sequential(nn.Linear(before, after), nn.ReLU(), *drop) for before, after in itertools.pairwise(sizes)
        )
        self.head = nn.Linear(sizes[-1], outputs)

    def forward(self, x: Tensor) -> Tensor:
        x = x.reshape(x.shape[0], -1)
        for layer in self.layers:
            x = layer(x)
        logits: Tensor = self.head(x)
        return logits


def mlp(input_shape: tuple[int, ...], num_classes: int, *, hidden: Sequence[int] = (128,), dropout: float = 0.0) -> MLP:
    """An MLP with ReLU between layers; `hidden` gives the widths, and `[]` makes it a linear classifier.

    `dropout` is the share of each hidden layer that is zeroed in training.
    """
    widths = whole_numbers("zoo:mlp", "hidden", hidden, least=0)
    return MLP(math.prod(input_shape), widths, num_classes, share("zoo:mlp", "dropout", dropout))
