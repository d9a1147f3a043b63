"""Cases of the losses of dense detectors: loops over images, positions and boxes, float64."""

from __future__ import annotations

import math
from typing import Any

import torch
from objective_case import Case
from torch import Tensor

from kdcache.codecs import QuantisedLogits
from kdcache.objectives.detection import detection, detection_boxes, kd_foreground

__all__ = ["CASES"]

Inputs = tuple[list[Any], list[Any]]
STRIDE, WIDTH, ROWS, COLUMNS, CLASSES = 8, 45, 5, 6, 3
GRID = {"stride": STRIDE, "width": WIDTH}


def heads(generator: torch.Generator, images: int) -> tuple[Tensor, Tensor]:
    """Logits and sides of every position, sides above 0."""
    places = ROWS * COLUMNS
    return (
        2 * torch.randn(images, places, CLASSES + 1, generator=generator),
        1 + 15 * torch.rand(images, places, 4, generator=generator),
    )


def true_boxes(generator: torch.Generator, images: int) -> Inputs:
    """Up to four boxes an image, which overlap; the last place is padding, the one before in every other image."""
    low = torch.rand(images, 4, 2, generator=generator) * torch.tensor([30.0, 25.0])
    size = 4 + 20 * torch.rand(images, 4, 2, generator=generator)
    classes = torch.randint(1, CLASSES + 1, (images, 4), generator=generator)
    classes[:, 3] = -1
    classes[1::2, 2] = -1
    boxes = torch.cat([low, low + size], dim=2).masked_fill((classes < 0)[:, :, None], -1.0)
    return list(heads(generator, images)), [boxes, classes]


def same_grid(generator: torch.Generator, images: int) -> Inputs:
    logits, sides = heads(generator, images)
    return [1 + 15 * torch.rand(sides.shape, generator=generator)], [sides, logits]


def positions(generator: torch.Generator, rows: int) -> Inputs:
    """What most positions are: background, for the teacher."""
    teacher = 2 * torch.randn(rows, CLASSES + 1, generator=generator) + torch.tensor([2.0, 0.0, 0.0, 0.0])
    return [2 * torch.randn(rows, CLASSES + 1, generator=generator)], [teacher]


def quantised(generator: torch.Generator, rows: int) -> Inputs:
    codes = torch.randint(256, (rows, CLASSES + 1), generator=generator, dtype=torch.uint8)
    scale, zero = torch.rand(rows, 1, generator=generator) / 50, torch.randn(rows, 1, generator=generator)
    return positions(generator, rows)[0], [QuantisedLogits(codes, scale, zero)]


def soft(row: Tensor, temperature: float = 1.0) -> Tensor:
    e = ((row - row.detach().max()) / temperature).exp()
    return e / e.sum()


def giou(ours: list[Any], theirs: list[Any]) -> Any:
    """Of two boxes given by their corners."""

    def area(box: list[Any]) -> Any:
        return (box[2] - box[0]) * (box[3] - box[1])

    inner = [max(ours[0], theirs[0]), max(ours[1], theirs[1]), min(ours[2], theirs[2]), min(ours[3], theirs[3])]
    outer = [min(ours[0], theirs[0]), min(ours[1], theirs[1]), max(ours[2], theirs[2]), max(ours[3], theirs[3])]
    shared = area(inner) if inner[2] > inner[0] and inner[3] > inner[1] else 0.0
    union = area(ours) + area(theirs) - shared
    return shared / union - (area(outer) - union) / area(outer)


def corners(x: float, y: float, sides: Tensor) -> list[Any]:
    return [x - sides[0], y - sides[1], x + sides[2], y + sides[3]]


def reference_detection(
    logits: Tensor,
    sides: Tensor,
    boxes: Tensor,
    classes: Tensor,
    *,
    stride: int,
    width: int,
    radius: float = 1.5,
    alpha: float = 0.25,
    gamma: float = 2.0,
    box_weight: float = 1.0,
) -> Tensor:
    columns = math.ceil(width / stride)
    total, positives = logits.new_zeros(()), 0
    for image in range(len(logits)):
        for place in range(logits.shape[1]):
            x, y = (place % columns + 0.5) * stride, (place // columns + 0.5) * stride
            best, label = math.inf, 0
            for (x1, y1, x2, y2), kind in zip(boxes[image].tolist(), classes[image].tolist(), strict=True):
                inside = kind > 0 and x1 < x < x2 and y1 < y < y2
                near = abs(x - (x1 + x2) / 2) <= radius * stride and abs(y - (y1 + y2) / 2) <= radius * stride
                if inside and near and (x2 - x1) * (y2 - y1) < best:
                    best, label, box = (x2 - x1) * (y2 - y1), kind, [x1, y1, x2, y2]
            q = soft(logits[image, place])[label]
            total = total - (alpha if label else 1 - alpha) * (1 - q) ** gamma * q.log()
            if label:
                positives += 1
                total = total + box_weight * (1 - giou(corners(x, y, sides[image, place]), box))
    return total / max(positives, 1)


def reference_boxes(sides: Tensor, teacher: Tensor, logits: Tensor, *, measure: str = "giou") -> Tensor:
    total, weight = sides.new_zeros(()), 0.0
    for ours, theirs, rows in zip(sides, teacher, logits, strict=True):
        for mine, yours, row in zip(ours, theirs, rows, strict=True):
            w = float(soft(row)[1:].sum())
            off = 1 - giou(corners(100.0, 100.0, mine), corners(100.0, 100.0, yours))
            if measure == "l1":
                off = sum((abs(a - b) for a, b in zip(mine, yours, strict=True)), sides.new_zeros(())) / 4
            total, weight = total + w * off, weight + w
    return total / weight


def reference_foreground(student: Tensor, targets: Any, *, temperature: float = 1.0, background: float = 0.0) -> Tensor:
    rows = targets if isinstance(targets, Tensor) else targets.codes.double() * targets.scale + targets.zero
    total, weight = student.new_zeros(()), 0.0
    for ours, theirs in zip(student, rows, strict=True):
        w = background + (1 - background) * (1 - float(soft(theirs)[0]))
        q, p = soft(ours, temperature), soft(theirs, temperature)
        total = total + w * torch.stack([a * (a / b).log() for a, b in zip(p, q, strict=True)]).sum()
        weight += w
    return temperature**2 * total / weight


CASES = [
    Case("detection", detection, reference_detection, true_boxes, GRID),
    Case(
        "detection_weighted",
        detection,
        reference_detection,
        true_boxes,
        {**GRID, "radius": 0.8, "alpha": 0.6, "gamma": 1.0, "box_weight": 3.0},
    ),
    Case("detection_boxes", detection_boxes, reference_boxes, same_grid),
    Case("detection_boxes_l1", detection_boxes, reference_boxes, same_grid, {"measure": "l1"}),
    Case("kd_foreground", kd_foreground, reference_foreground, positions),
    Case("kd_foreground_hot", kd_foreground, reference_foreground, positions, {"temperature": 4.0, "background": 0.1}),
    Case("kd_foreground_quantised", kd_foreground, reference_foreground, quantised, {"temperature": 2.0}),
]
