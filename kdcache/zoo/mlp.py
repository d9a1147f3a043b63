"""A multi-layer perceptron for inputs of any shape."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

from torch import Tensor, nn

from kdcache.zoo.arguments import whole_numbers

__all__ = ["MLP", "mlp"]


class MLP(nn.Module):
    """[B, *shape] → logits [B, C]. Tap `layers.i` is hidden layer i after its ReLU, [B, hidden[i]]."""

    def __init__(self, inputs: int, hidden: Sequence[int], outputs: int) -> None:
        super().__init__()
        sizes = (inputs, *hidden)
        self.layers = nn.ModuleList(
            nn.Sequential(nn.Linear(before, after), nn.ReLU()) for before, after in itertools.pairwise(sizes)
        )
        self.head = nn.Linear(sizes[-1], outputs)

    def forward(self, x: Tensor) -> Tensor:
        x = x.reshape(x.shape[0], -1)
        for layer in self.layers:
            x = layer(x)
        logits: Tensor = self.head(x)
        return logits


def mlp(input_shape: tuple[int, ...], num_classes: int, *, hidden: Sequence[int] = (128,)) -> MLP:
    """An MLP with ReLU between layers; `hidden` gives the widths, and `[]` makes it a linear classifier."""
    return MLP(math.prod(input_shape), whole_numbers("zoo:mlp", "hidden", hidden, least=0), num_classes)
