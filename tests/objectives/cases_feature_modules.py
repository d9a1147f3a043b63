"""Cases of the losses on features that learn more than an adapter, or weigh places: place by place, in float64."""

from __future__ import annotations

from itertools import product
from typing import Any

import torch
from feature_reference import Shape, built, draw, everywhere, fresh, mean, mixed, shrunk, weights
from objective_case import Case
from torch import Tensor, nn

from kdcache.objectives.margin import Margin
from kdcache.objectives.masked import MaskedMap
from kdcache.objectives.review import Review
from kdcache.objectives.vid import Vid

__all__ = ["CASES"]

# vid


vid_maps = built(Vid, [(3, 4, 4)], [(2, 2, 3)], hidden=5)
vid_vectors = built(Vid, [(3,)], [(4,)], variance=2.0, smallest=0.01)


def likelihood(target: Tensor, feature: Tensor, module: nn.Module, smallest: float) -> Tensor:
    """Of the teacher's [D] for the student's [D]."""
    raw, first, second, third = weights(module)
    hidden = torch.relu(mixed(feature, first, None))
    centre = mixed(torch.relu(mixed(hidden, second, None)), third, None)
    variance = torch.log(1 + torch.exp(raw)) + smallest
    return mean([(torch.log(v) + (t - m) ** 2 / v) / 2 for v, t, m in zip(variance, target, centre, strict=True)])


def vid_maps_reference(student: Tensor, teacher: Tensor) -> Tensor:
    rows = []
    for ours, theirs in zip(student, teacher, strict=True):
        ours = shrunk(ours, (2, 3))
        places = product(range(2), range(3))
        rows.append(mean([likelihood(theirs[:, y, x], ours[:, y, x], vid_maps, 1e-5) for y, x in places]))
    return mean(rows)


def vid_vectors_reference(student: Tensor, teacher: Tensor) -> Tensor:
    return mean([likelihood(t, s, vid_vectors, 0.01) for s, t in zip(student, teacher, strict=True)])


# margin


margin_maps = built(Margin, [(3, 2, 2)], [(4, 4, 2)])


def margin_reference(student: Tensor, teacher: Tensor) -> Tensor:
    weight, bias = weights(margin_maps)
    small = [shrunk(image, (2, 2)) for image in teacher]
    values = []
    for channel in range(4):
        negative = [x for image in small for x in image[channel].flatten() if x < 0]
        margin = mean(negative) if negative else torch.zeros((), dtype=torch.float64)
        for ours, theirs in zip(student, small, strict=True):
            for s, t in zip(everywhere(ours, weight, bias)[channel].flatten(), theirs[channel].flatten(), strict=True):
                target = t if t > margin else margin
                values.append(s * 0 if s <= target <= 0 else (s - target) ** 2)
    return mean(values)


# review


review_levels = built(Review, [(2, 5, 6), (3, 4, 4), (4, 2, 3)], [(3, 5, 5), (4, 3, 5), (5, 3, 2)], width=3)


def draw_levels(generator: torch.Generator, rows: int) -> tuple[list[Any], list[Any]]:
    shapes = [[(2, 5, 6), (3, 4, 4), (4, 2, 3)], [(3, 5, 5), (4, 3, 5), (5, 3, 2)]]
    ours, theirs = [[torch.randn(rows, *shape, generator=generator) for shape in side] for side in shapes]
    return [ours], [theirs]


def normalised(batch: list[Tensor], scale: Tensor, shift: Tensor) -> list[Tensor]:
    """Batch normalisation of [D, H, W] maps."""
    flat = torch.cat([image.flatten(1) for image in batch], dim=1)
    centre = flat.sum(1) / flat.shape[1]
    spread = (((flat.T - centre) ** 2).sum(0) / flat.shape[1] + 1e-5).sqrt()
    return [
        (image - centre[:, None, None]) / spread[:, None, None] * scale[:, None, None] + shift[:, None, None]
        for image in batch
    ]


def three_by_three(image: Tensor, weight: Tensor) -> Tensor:
    _, height, width = image.shape
    padded = image.new_zeros(len(image), height + 2, width + 2)
    padded[:, 1:-1, 1:-1] = image
    return torch.stack(
        [
            torch.stack(
                [
                    torch.stack([(kernel * padded[:, y : y + 3, x : x + 3]).sum() for kernel in weight])
                    for x in range(width)
                ],
                dim=1,
            )
            for y in range(height)
        ],
        dim=1,
    )


def nearest(image: Tensor, space: Shape) -> Tensor:
    ys = [y * image.shape[1] // space[0] for y in range(space[0])]
    xs = [x * image.shape[2] // space[1] for x in range(space[1])]
    return image[:, ys][:, :, xs]


def review_reference(student: list[Tensor], teacher: list[Tensor]) -> Tensor:
    levels = [list(level if level.ndim == 4 else level[:, :, None, None]) for level in student]
    targets = [list(level if level.ndim == 4 else level[:, :, None, None]) for level in teacher]
    total, passed = torch.zeros((), dtype=torch.float64), None
    for place in (2, 1, 0):
        found = {name: value.detach().double() for name, value in review_levels.fusions[place].named_parameters()}  # type: ignore[index,union-attr]
        maps = [everywhere(image, found["enter.0.weight"]) for image in levels[place]]
        maps = normalised(maps, found["enter.1.weight"], found["enter.1.bias"])
        if passed is not None:
            joined = []
            for image, deeper in zip(maps, passed, strict=True):
                deeper = nearest(deeper, tuple(image.shape[1:]))
                gates = everywhere(torch.cat([image, deeper]), found["gates.weight"], found["gates.bias"])
                gates = 1 / (1 + torch.exp(-gates))
                joined.append(image * gates[0] + deeper * gates[1])
            maps = joined
        passed = [nearest(image, tuple(targets[place][0].shape[1:])) for image in maps]
        compared = [three_by_three(image, found["leave.0.weight"]) for image in passed]
        compared = normalised(compared, found["leave.1.weight"], found["leave.1.bias"])
        shortest = min(targets[place][0].shape[1:])
        parts, share = [], 1.0
        sizes: list[Any] = [None, *(size for size in (4, 2, 1) if size < shortest)]
        for size in sizes:
            errors = [
                ((a - b) if size is None else shrunk(a, (size, size)) - shrunk(b, (size, size))) ** 2
                for a, b in zip(compared, targets[place], strict=True)
            ]
            parts.append((share, mean([error.sum() / error.numel() for error in errors])))
            share /= 2
        total = total + sum(share * part for share, part in parts) / sum(share for share, _ in parts)
    return total


# masked_map


masked = built(MaskedMap, [(3, 4, 6)], [(2, 4, 3), (8, 9)], foreground=2.0, background=0.5)
boxed = built(MaskedMap, [(3, 4, 6)], [(2, 4, 3), (3, 4)], foreground=2.0, background=0.5, stride=8.0)
by_object = built(MaskedMap, [(3, 4, 6)], [(2, 4, 3), (3, 4)], background=0.5, stride=8.0, by_object=True)


def draw_masks(generator: torch.Generator, rows: int) -> tuple[list[Any], list[Any]]:
    mask = (torch.rand(rows, 8, 9, generator=generator) < 0.3).to(torch.uint8)
    mask[0] = 0
    ours, theirs = draw((3, 4, 6), (2, 4, 3))(generator, rows)
    return ours, [*theirs, mask]


def draw_boxes(generator: torch.Generator, rows: int) -> tuple[list[Any], list[Any]]:
    """Some over the edge, some over each other, some in one cell, some rows empty."""
    corner = torch.rand(rows, 3, 2, generator=generator) * torch.tensor([48.0, 32.0]) - 3
    size = torch.rand(rows, 3, 2, generator=generator) * 20 + 0.5
    boxes = torch.cat([corner, corner + size], dim=2)
    boxes[:, 2][torch.rand(rows, generator=generator) < 0.5] = -1
    boxes[0] = -1
    ours, theirs = draw((3, 4, 6), (2, 4, 3))(generator, rows)
    return ours, [*theirs, boxes]


def masked_reference(module: nn.Module, fore: float, back: float, *tensors: Tensor) -> Tensor:
    """From m and w of every cell."""
    weight, bias = weights(module)
    student, teacher, object_share, object_weight = tensors
    rows = []
    for ours, theirs, m, w in zip(student, teacher, object_share, object_weight, strict=True):
        error = mean(list((everywhere(shrunk(ours, (4, 3)), weight, bias) - theirs) ** 2))
        value = torch.zeros((), dtype=torch.float64)
        for factor, share in ((fore, w), (back, 1 - m)):
            if share.sum() > 0:
                value = value + factor * (error * share).sum() / share.sum()
        rows.append(value)
    return mean(rows)


def mask_reference(student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
    small = torch.stack([shrunk(row.double()[None], (4, 3))[0] for row in mask])
    return masked_reference(masked, 2.0, 0.5, student, teacher, small, small)


def box_reference(student: Tensor, teacher: Tensor, boxes: Tensor) -> Tensor:
    m, _ = covered(boxes)
    return masked_reference(boxed, 2.0, 0.5, student, teacher, m, m)


def object_reference(student: Tensor, teacher: Tensor, boxes: Tensor) -> Tensor:
    return masked_reference(by_object, 1.0, 0.5, student, teacher, *covered(boxes))


def covered(boxes: Tensor) -> tuple[Tensor, Tensor]:
    """m and w by_object of 4 x 3 cells, each 8 pixels high and 16 wide."""
    m, w = torch.zeros(len(boxes), 4, 3, dtype=torch.float64), torch.zeros(len(boxes), 4, 3, dtype=torch.float64)
    for row, y, x in product(range(len(boxes)), range(4), range(3)):
        for x1, y1, x2, y2 in boxes[row].tolist():
            if min(x2, 16 * x + 16) > max(x1, 16 * x) and min(y2, 8 * y + 8) > max(y1, 8 * y):
                m[row, y, x] = 1
                w[row, y, x] = max(float(w[row, y, x]), 1 / ((x2 - x1) * (y2 - y1)))
    return m, w


CASES: list[Case] = [
    Case("vid-maps", fresh(vid_maps), vid_maps_reference, draw((3, 4, 4), (2, 2, 3))),
    Case("vid-vectors", fresh(vid_vectors), vid_vectors_reference, draw((3,), (4,))),
    Case("margin", fresh(margin_maps), margin_reference, draw((3, 2, 2), (4, 4, 2))),
    Case("review", fresh(review_levels), review_reference, draw_levels),
    Case("masked_map-mask", fresh(masked), mask_reference, draw_masks),
    Case("masked_map-boxes", fresh(boxed), box_reference, draw_boxes),
    Case("masked_map-by-object", fresh(by_object), object_reference, draw_boxes),
]
