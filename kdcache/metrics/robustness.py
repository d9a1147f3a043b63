"""Accuracy on inputs that were changed: by an attack through the network's own gradient, or by noise.

`epsilon` and the others are in 1/255 of the input's range, whatever its units: 8 is the usual 8/255. Only the first
`attacked_rows` labelled rows of the store are attacked, and beside each number stands the clean accuracy on the same
rows. Everything drawn comes from one fixed seed, so every network meets the same starts and the same noise.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from kdcache.errors import UsageError
from kdcache.metrics.judged import Judged

__all__ = ["fgsm_accuracy", "noise_accuracy", "pgd_accuracy"]

_SEED = 20180709
_BATCH = 128

Attack = Callable[[Tensor, Callable[[Tensor], Tensor]], Tensor]  # inputs, their gradient at a point -> changed inputs


def pgd_accuracy(
    judged: Judged, *, epsilon: float = 8.0, steps: int = 10, step_size: float = 2.0, attacked_rows: int = 1000
) -> dict[str, float]:
    """{"pgd_accuracy", "pgd_clean_accuracy"} under projected gradient descent in the l-infinity ball.

    Madry et al. 2018, section 2.1: from a uniform start in the ball, `steps` times x + step_size * sign(gradient of the
    cross-entropy), each clipped to the ball of radius `epsilon` around the input and to the inputs' range.
    """
    _positive(epsilon=epsilon, steps=steps, step_size=step_size)
    unit = _unit(judged)
    generator = torch.Generator().manual_seed(_SEED)

    def attack(clean: Tensor, slope: Callable[[Tensor], Tensor]) -> Tensor:
        low, high = _ball(judged, clean, epsilon * unit)
        x = low + (high - low) * torch.rand(clean.shape, generator=generator)
        for _ in range(steps):
            x = (x + step_size * unit * slope(x).sign()).clamp(low, high)
        return x

    return _accuracies(judged, "pgd", attack, attacked_rows)


def fgsm_accuracy(judged: Judged, *, epsilon: float = 8.0, attacked_rows: int = 1000) -> dict[str, float]:
    """{"fgsm_accuracy", "fgsm_clean_accuracy"} after one step, x + epsilon * sign(gradient of the cross-entropy).

    Clipped to the inputs' range: the fast gradient sign method (Goodfellow et al. 2015, section 4).
    """
    _positive(epsilon=epsilon)
    unit = _unit(judged)

    def attack(clean: Tensor, slope: Callable[[Tensor], Tensor]) -> Tensor:
        return (clean + epsilon * unit * slope(clean).sign()).clamp(*judged.input_range)

    return _accuracies(judged, "fgsm", attack, attacked_rows)


def noise_accuracy(judged: Judged, *, noise: float = 16.0, attacked_rows: int = 1000) -> dict[str, float]:
    """{"noise_accuracy", "noise_clean_accuracy"} with Gaussian noise of this standard deviation on every value, clipped
    to the inputs' range."""
    _positive(noise=noise)
    unit = _unit(judged)
    generator = torch.Generator().manual_seed(_SEED)

    def attack(clean: Tensor, slope: Callable[[Tensor], Tensor]) -> Tensor:
        return (clean + noise * unit * torch.randn(clean.shape, generator=generator)).clamp(*judged.input_range)

    return _accuracies(judged, "noise", attack, attacked_rows)


def _accuracies(judged: Judged, name: str, attack: Attack, most: int) -> dict[str, float]:
    """Over the labelled places of the first `most` rows that have any, as they are changed and as they are."""
    _positive(attacked_rows=most)
    label = judged.row("label")
    known = (label.reshape(len(label), -1) >= 0).any(dim=1).nonzero().squeeze(1)[:most]
    if not len(known):
        raise UsageError(f"none of the {len(label)} evaluation rows has a label to judge by")
    places = right = clean_right = 0
    # Inference mode may be on around us, and lets no gradient be taken.
    with torch.inference_mode(False), torch.enable_grad():
        for first in range(0, len(known), _BATCH):
            batch = {key: values[known[first : first + _BATCH]] for key, values in judged.rows.items()}
            clean, answer = batch["input"].float(), batch["label"].flatten()
            changed = attack(clean, functools.partial(_slope, judged, batch)).detach()
            with torch.no_grad():
                places += int((answer >= 0).sum())
                right += int((_logits(judged, batch, changed).argmax(dim=1) == answer).sum())
                clean_right += int((_logits(judged, batch, clean).argmax(dim=1) == answer).sum())
    return {f"{name}_accuracy": right / places, f"{name}_clean_accuracy": clean_right / places}


def _logits(judged: Judged, batch: dict[str, Tensor], x: Tensor) -> Tensor:
    """Of every place of the batch with other inputs, float32 [R, C] on the CPU."""
    found = judged.network({**batch, "input": x})["logits"]
    return found.float().flatten(0, -2).cpu()


def _slope(judged: Judged, batch: dict[str, Tensor], x: Tensor) -> Tensor:
    """The gradient of the cross-entropy with respect to the inputs at `x`, a multiple of it for one label a row.

    The cross-entropy is softplus(d), d = logsumexp(the other classes) - (the label's logit). The attacks take the sign
    only, so that of a single d serves as well, and it does not underflow where a network is very sure, which would
    leave the attack standing still and the network looking robust.
    """
    x, label = x.detach().requires_grad_(), batch["label"].flatten()
    logits, known = _logits(judged, batch, x), label >= 0
    logits, label = logits[known], label[known, None]
    off = logits.scatter(1, label, -torch.inf).logsumexp(dim=1) - logits.gather(1, label).squeeze(1)
    loss = off if batch["label"].ndim == 1 else F.softplus(off)
    return torch.autograd.grad(loss.sum(), x)[0]


def _ball(judged: Judged, clean: Tensor, radius: float) -> tuple[Tensor, Tensor]:
    """The lowest and highest values that an attack of this radius may give, each of the shape of the inputs."""
    lowest, highest = judged.input_range
    return (clean - radius).clamp(min=lowest), (clean + radius).clamp(max=highest)


def _unit(judged: Judged) -> float:
    """1/255 of the inputs' range."""
    low, high = judged.input_range
    if not low < high:
        raise UsageError(f"input_range = {judged.input_range}: an attack needs the lowest and the highest input")
    return (high - low) / 255


def _positive(**values: float) -> None:
    for name, value in values.items():
        if not 0 < value < float("inf"):
            raise UsageError(f"{name} = {value}: it must be a finite number above 0")
