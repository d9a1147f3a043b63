"""How much of the teacher a codec keeps, measured on rows of that teacher."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from kdcache.codecs.targets import SparseLogits

__all__ = ["fidelity"]


def fidelity(
    teacher_logits: Tensor, decoded: Tensor | SparseLogits, temperatures: Sequence[float] = (1, 2, 4)
) -> dict[str, dict[str, float]]:
    """{"kl": {"1": KL(teacher ‖ decoded) in nats at T = 1, ...}}, the mean over rows of [B, C], in float64.

    Sparse targets say nothing of single classes in the tail: its mass is spread evenly over them here, so that the
    number is a divergence over all C classes and comparable between codecs. With the tail taken as one class, as the
    objectives take it, it would be smaller.
    """
    kl = {}
    for temperature in temperatures:
        target = torch.log_softmax(teacher_logits.double() / temperature, dim=1)
        kl[f"{temperature:g}"] = float((target.exp() * (target - spread(decoded, temperature))).sum(1).mean())
    return {"kl": kl}


def spread(decoded: Tensor | SparseLogits, temperature: float) -> Tensor:
    """Log-probabilities float64 [B, C] at T."""
    if isinstance(decoded, Tensor):
        return torch.log_softmax(decoded.double() / temperature, dim=1)
    tail = None if decoded.tail is None else decoded.tail.double()
    wide = SparseLogits(decoded.indices, decoded.log_p.double(), tail, decoded.num_classes)
    kept, mass = wide.log_probs(temperature)
    each = mass - math.log(max(wide.tail_count, 1))
    return each[:, None].repeat(1, wide.num_classes).scatter(1, wide.indices, kept)
