"""Networks that tell the teacher's tensors from the student's."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm as normalised

from kdcache.errors import UsageError

__all__ = ["Discriminator", "Weights"]

Weights = tuple[Tensor, Tensor | None]  # weight and bias of a layer


class Discriminator(nn.Module):
    """One number per sample, high for the teacher's: [B, *shape] -> [B], float32.

    Vectors [D] go through two hidden layers of `hidden` units (Xu et al. 2018 judge logits with a multi-layer
    perceptron), maps [D, H, W] through two 3x3 convolutions of `hidden` channels, the second with stride 2, and a mean
    over space; leaky ReLU of slope 0.2 after each. With h the last hidden layer the number is w . h + b, and with
    `classes` (w + V c) . h + b for a condition c [classes], a projection discriminator (Miyato & Koyama 2018).
    `spectral_norm` divides every weight by its largest singular value (Miyato et al. 2018, section 2.1) as power
    iteration estimates it, one step at every reading in training mode; its vectors are buffers.
    """

    def __init__(self, shape: tuple[int, ...], hidden: int, spectral_norm: bool, classes: int = 0) -> None:
        super().__init__()
        if len(shape) not in (1, 3) or min(shape) < 1:
            raise UsageError(
                f"adversarial: a discriminator reads vectors [D] and maps [D, H, W], and was given {list(shape)}: "
                "choose another tap"
            )
        if hidden < 1:
            raise UsageError(f"adversarial: hidden = {hidden}: the discriminator needs 1 unit or more")
        self._vectors = len(shape) == 1
        if self._vectors:
            layers: list[nn.Module] = [nn.Linear(shape[0], hidden), nn.Linear(hidden, hidden)]
        else:
            layers = [nn.Conv2d(shape[0], hidden, 3, padding=1), nn.Conv2d(hidden, hidden, 3, stride=2, padding=1)]
        layers.append(nn.Linear(hidden, 1))
        if classes:
            layers.append(nn.Linear(classes, hidden, bias=False))
        self.layers = nn.ModuleList(normalised(layer) if spectral_norm else layer for layer in layers)

    def weights(self) -> list[Weights]:
        """What `forward` computes with. Read once for all calls of a step: in training each reading is a power step."""
        return [(layer.weight, layer.bias) for layer in self.layers]  # type: ignore[misc]

    def forward(self, sample: Tensor, condition: Tensor | None = None, weights: list[Weights] | None = None) -> Tensor:
        """The verdicts on float32 [B, *shape], given [B, classes] if it was built so; with these weights or its own."""
        first, second, last, *projection = self.weights() if weights is None else weights
        if self._vectors:
            hidden = F.leaky_relu(F.linear(sample, *first), 0.2)
            hidden = F.leaky_relu(F.linear(hidden, *second), 0.2)
        else:
            hidden = F.leaky_relu(F.conv2d(sample, *first, padding=1), 0.2)
            hidden = F.leaky_relu(F.conv2d(hidden, *second, stride=2, padding=1), 0.2).mean(dim=(2, 3))
        verdict = F.linear(hidden, *last).squeeze(1)
        if projection:
            assert condition is not None, "built with classes"
            verdict = verdict + (F.linear(condition, *projection[0]) * hidden).sum(dim=1)
        return verdict
