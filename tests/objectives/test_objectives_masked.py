"""Maps weighted by masks and boxes."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from kdcache.errors import UsageError
from kdcache.objectives.masked import MaskedMap, touched
from kdcache.objectives.shapes import Shapes

TEACHER = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]])  # against a student of zeros: errors 1, 4, 9, 16


def loss(student: tuple[int, ...], teacher: tuple[int, ...], region: tuple[int, ...], **options: Any) -> MaskedMap:
    return MaskedMap(Shapes((student,), (teacher, region), torch.arange(4).numpy(), 3), **options)


def identity(region: tuple[int, ...], **options: Any) -> MaskedMap:
    made = loss((1, 2, 2), (1, 2, 2), region, **options)
    with torch.no_grad():
        made.adapter.project.weight.fill_(1)  # type: ignore[operator,union-attr]
        made.adapter.project.bias.zero_()  # type: ignore[operator,union-attr]
    return made


def of(made: MaskedMap, region: torch.Tensor) -> float:
    return made(torch.zeros(len(region), 1, 2, 2), TEACHER.expand(len(region), -1, -1, -1), region).item()


@pytest.mark.parametrize(
    ("mask", "expected"),
    [
        ([[1, 0], [0, 0]], 2 * 1 + 3 * (4 + 9 + 16) / 3),
        ([[0, 1], [0, 1]], 2 * (4 + 16) / 2 + 3 * (1 + 9) / 2),
        ([[0, 0], [0, 0]], 3 * 30 / 4),
        ([[1, 1], [1, 1]], 2 * 30 / 4),
    ],
)
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.bool, torch.float32])
def test_a_mask_by_hand(mask: list[list[int]], expected: float, dtype: torch.dtype) -> None:
    made = identity((2, 2), foreground=2.0, background=3.0)
    assert of(made, torch.tensor([mask]).to(dtype)) == pytest.approx(expected)


def test_a_mask_of_pixels_counts_by_the_share_of_a_position() -> None:
    mask = torch.zeros(1, 4, 6, dtype=torch.uint8)
    mask[0, :2, :3], mask[0, 2, 3] = 255, 255  # all of the first position, a sixth of the last
    share = 1 / 6
    expected = (1 + share * 16) / (1 + share) + (4 + 9 + (1 - share) * 16) / (3 - share)
    assert of(identity((4, 6)), mask) == pytest.approx(expected)


def test_boxes_by_hand() -> None:
    made = identity((3, 4), stride=8.0)
    boxes = torch.tensor(
        [
            [[0.0, 0, 8, 8], [-1, -1, -1, -1], [5, 5, 5, 9]],  # the first position alone, to its edge; two empty ones
            [[7.5, 9, 8.5, 9.5], [-1, -1, -1, -1], [-1, -1, -1, -1]],  # both of the second row
            [[-1, -1, -1, -1], [-1, -1, -1, -1], [-1, -1, -1, -1]],
            [[-20, -20, 90, 90], [0, 0, 3, 3], [40, 40, 50, 50]],  # over the edges; inside another; outside
        ]
    )
    rows = [1 + 29 / 3, 25 / 2 + 5 / 2, 30 / 4, 30 / 4]
    for box, row in zip(boxes, rows, strict=True):
        assert of(made, box[None]) == pytest.approx(row)
    assert of(made, boxes) == pytest.approx(sum(rows) / 4)


def test_by_object_a_small_box_counts_as_much_as_a_large_one() -> None:
    boxes = torch.tensor([[[0.0, 0, 8, 8], [0, 8, 16, 16]]])  # areas 64 and 128: weights 2 : 1 : 1
    assert of(identity((2, 4), stride=8.0, background=0.0), boxes) == pytest.approx((1 + 9 + 16) / 3)
    made = identity((2, 4), stride=8.0, background=0.0, by_object=True)
    assert of(made, boxes) == pytest.approx((2 * 1 + 9 + 16) / 4)
    nested = torch.tensor([[[0.0, 0, 16, 16], [0, 0, 4, 4]]])  # the smaller one's weight where both are: 16 : 1 : 1 : 1
    assert of(made, nested) == pytest.approx((16 * 1 + 4 + 9 + 16) / 19)
    assert of(made, torch.full((1, 2, 4), -1.0)) == 0


def test_stride_is_of_the_students_map_whatever_the_teachers_size() -> None:
    boxes = torch.tensor([[[0.0, 0, 15, 15]]])
    coarse, fine = loss((1, 4, 4), (1, 2, 2), (1, 4), stride=8.0), loss((1, 4, 4), (1, 4, 4), (1, 4), stride=8.0)
    for made, cells in ((coarse, 1), (fine, 4)):
        mask, _ = made._regions(boxes)
        assert mask.sum() == cells


def test_touched_against_pixels() -> None:
    generator = torch.Generator().manual_seed(0)
    corner = torch.randint(-6, 40, (6, 5, 2), generator=generator)
    boxes = torch.cat([corner, corner + torch.randint(-1, 12, (6, 5, 2), generator=generator)], dim=2)
    found = touched(boxes, (4, 5), (8, 8))
    for row in range(6):
        for box, (x1, y1, x2, y2) in enumerate(boxes[row].tolist()):
            pixels = torch.zeros(32, 40)
            if x2 > x1 and y2 > y1:
                pixels[max(y1, 0) : max(y2, 0), max(x1, 0) : max(x2, 0)] = 1
            expected = pixels.view(4, 8, 5, 8).amax(dim=(1, 3)) > 0
            assert found[row, box].tolist() == expected.tolist()


@pytest.mark.parametrize(
    ("shapes", "options", "said"),
    [
        (((3,), (3,), (8, 8)), {}, r"takes maps \[D, H, W\]"),
        (((3, 4, 4), (3, 4, 4), (8,)), {}, "give a mask"),
        (((3, 4, 4), (3, 4, 4), (5, 4)), {}, "boxes .* as stride"),
        (((3, 4, 4), (3, 4, 4), (8, 8)), {"stride": 8.0}, "give a mask .* without stride"),
        (((3, 4, 4), (3, 4, 4), (8, 8)), {"by_object": True}, "needs boxes"),
        (((3, 4, 4), (3, 4, 4), (8, 8)), {"foreground": -1.0}, "foreground = -1"),
        (((3, 4, 4), (3, 4, 4), (8, 8)), {"background": math.nan}, "background = nan"),
        (((3, 4, 4), (3, 4, 4), (8, 4)), {"stride": -8.0}, "stride = -8"),
    ],
)
def test_what_is_refused(shapes: Any, options: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        loss(*shapes, **options)


def test_it_needs_both_fields() -> None:
    with pytest.raises(UsageError, match="name both"):
        MaskedMap(Shapes(((3, 4, 4),), ((3, 4, 4),), torch.arange(4).numpy(), 3))


def test_regions_of_other_rows_or_values_are_refused() -> None:
    with pytest.raises(UsageError, match="the masks or boxes of the same rows"):
        of(identity((2, 2)), torch.zeros(1, 2, 2)[:, 0])
    with pytest.raises(UsageError, match="the mask runs from 0 to 255"):
        of(identity((2, 2)), torch.tensor([[[0.0, 255], [0, 0]]]))
