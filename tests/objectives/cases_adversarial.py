"""Cases of the student's part of the adversarial losses: the discriminator unit by unit and patch by patch, float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from objective_case import Case
from torch import Tensor, nn

from kdcache.objectives.adversarial import Adversarial, AdversarialFeature
from kdcache.objectives.shapes import Shapes

__all__ = ["CASES", "verdict"]

CLASSES, HIDDEN = 7, 5
Shape = tuple[int, ...]
Layers = list[tuple[Tensor, Tensor]]


def verdict(sample: Tensor, layers: Layers) -> Tensor:
    """D of one vector [D] or map [D, H, W]."""
    for place, (weight, bias) in enumerate(layers):
        if sample.ndim == 3:
            sample = convolved(sample, weight, bias, stride=1 + place)
        else:
            sample = torch.stack([(row * sample).sum() + add for row, add in zip(weight, bias, strict=True)])
        if place == 2:
            return sample[0]
        sample = torch.where(sample > 0, sample, sample / 5)
        if place == 1 and sample.ndim == 3:
            sample = sample.flatten(1).mean(dim=1)
    raise AssertionError("three layers")


def convolved(sample: Tensor, weight: Tensor, bias: Tensor, stride: int) -> Tensor:
    _, height, width = sample.shape
    padded = sample.new_zeros(len(sample), height + 2, width + 2)
    padded[:, 1:-1, 1:-1] = sample
    lines = [
        torch.stack(
            [
                torch.stack([(kernel * padded[:, y : y + 3, x : x + 3]).sum() for kernel in weight]) + bias
                for x in range(0, width, stride)
            ],
            dim=1,
        )
        for y in range(0, height, stride)
    ]
    return torch.stack(lines, dim=1)


def fooled(form: str, d: Tensor) -> Tensor:
    match form:
        case "non_saturating":
            return -torch.log(1 / (1 + torch.exp(-d)))
        case "least_squares":
            return (d - 1) ** 2 / 2
        case _:
            return -d


def doubled(*layers: nn.Module) -> Layers:
    return [(layer.weight.detach().double(), layer.bias.detach().double()) for layer in layers]  # type: ignore[operator,union-attr]


def of_logits(student: Tensor, targets: Tensor, **options: Any) -> Tensor:
    with torch.random.fork_rng([]):
        torch.manual_seed(3)
        shapes = Shapes(((CLASSES,),), ((CLASSES,),), np.arange(4), CLASSES)
        found: Tensor = Adversarial(shapes, hidden=HIDDEN, spectral_norm=False, **options)(student, targets).student
    return found


def logits_reference(
    student: Tensor, targets: Tensor, *, form: str, temperature: float = 1.0, conditional: bool = True
) -> Tensor:
    with torch.random.fork_rng([]):
        torch.manual_seed(3)
        layers = doubled(nn.Linear(CLASSES, HIDDEN), nn.Linear(HIDDEN, HIDDEN), nn.Linear(HIDDEN, 1))
        projection = nn.Linear(CLASSES, HIDDEN, bias=False).weight.detach().double()
    total = torch.zeros((), dtype=torch.float64)
    for row, target in zip(student, targets, strict=True):
        log_q = torch.log_softmax(row / temperature, dim=0)  # less their mean, these are the logits less theirs
        of_answer = projection[:, max(range(CLASSES), key=lambda c: float(target[c]))] if conditional else 0
        weight, bias = layers[2]
        total = total + fooled(form, verdict(log_q - log_q.mean(), [*layers[:2], (weight + of_answer, bias)]))
    return total / max(len(student), 1)


def of_features(ours: Shape, theirs: Shape) -> Callable[..., Tensor]:
    def function(student: Tensor, teacher: Tensor, **options: Any) -> Tensor:
        with torch.random.fork_rng([]):
            torch.manual_seed(3)
            shapes = Shapes((ours,), (theirs,), np.arange(4), CLASSES)
            module = AdversarialFeature(shapes, hidden=HIDDEN, spectral_norm=False, **options)
            found: Tensor = module(student, teacher).student
        return found

    return function


def features_reference(ours: Shape, theirs: Shape) -> Callable[..., Tensor]:
    """For a student's map no larger than the teacher's, and for a student's vector."""

    def function(student: Tensor, teacher: Tensor, *, form: str) -> Tensor:
        maps = len(ours) == len(theirs) == 3
        with torch.random.fork_rng([]):
            torch.manual_seed(3)
            adapter = nn.Conv2d(ours[0], theirs[0], 1) if maps else nn.Linear(ours[0], theirs[0])
            first, second = (
                (nn.Conv2d(theirs[0], HIDDEN, 3), nn.Conv2d(HIDDEN, HIDDEN, 3))
                if maps
                else (nn.Linear(theirs[0], HIDDEN), nn.Linear(HIDDEN, HIDDEN))
            )
            layers = doubled(first, second, nn.Linear(HIDDEN, 1))
        weight, bias = doubled(adapter)[0]
        total = torch.zeros((), dtype=torch.float64)
        for sample in student:
            flat = weight.flatten(1) @ sample.reshape(ours[0], -1) + bias[:, None]
            total = total + fooled(form, verdict(flat.reshape(theirs[0], *ours[1:]), layers))
        return total / max(len(student), 1)

    return function


def pair(ours: Shape, theirs: Shape) -> Callable[[torch.Generator, int], tuple[list[Any], list[Any]]]:
    def draw(generator: torch.Generator, rows: int) -> tuple[list[Any], list[Any]]:
        student, teacher = (torch.randn(rows, *shape, generator=generator) for shape in (ours, theirs))
        return [student], [teacher]

    return draw


def on_logits(name: str, **options: Any) -> Case:
    return Case(name, of_logits, logits_reference, pair((CLASSES,), (CLASSES,)), options)


def on_features(name: str, ours: Shape, theirs: Shape, **options: Any) -> Case:
    return Case(name, of_features(ours, theirs), features_reference(ours, theirs), pair(ours, theirs), options)


CASES = [
    on_logits("adversarial", form="non_saturating"),
    on_logits("adversarial-least-squares", form="least_squares", temperature=4.0),
    on_logits("adversarial-hinge", form="hinge", conditional=False),
    on_features("adversarial-maps", (3, 3, 4), (4, 6, 4), form="least_squares"),
    on_features("adversarial-vectors", (3,), (6, 5, 5), form="non_saturating"),
]
