"""Boxes of a dense detector: the grid, decoding, overlaps, and suppression against the greedy loop."""

from __future__ import annotations

import pytest
import torch

from kdcache.errors import UsageError
from kdcache.metrics.boxes import Boxes, decode, grid_stride, kept_boxes, overlaps


def test_the_stride_of_a_grid() -> None:
    assert grid_stride(12 * 16, 96, 128) == 8
    assert grid_stride(5 * 7, 75, 100, 15) == 15
    assert grid_stride(13 * 13, 97, 100) == 8  # rounded up
    with pytest.raises(UsageError, match="36 positions are no grid over inputs of 75 x 100 pixels at a stride of a"):
        grid_stride(36, 75, 100)
    with pytest.raises(UsageError, match="at stride = 10"):
        grid_stride(35, 75, 100, 10)
    with pytest.raises(UsageError, match="stride = 0"):
        grid_stride(35, 75, 100, 0)


def test_decoding_by_hand() -> None:
    """A 2 x 3 grid of stride 10 over 20 x 25 pixels: position 4 is the middle of the second row, its centre 15, 15."""
    logits = torch.tensor([10.0, 0.0, 0.0]).repeat(1, 6, 1)
    logits[0, 4] = torch.tensor([0.0, 1.0, 3.0])
    sides = torch.tensor([3.0, 4.0, 5.0, 6.0]).repeat(1, 6, 1)
    found = decode(logits, sides, (20, 25), 10, 2)
    assert found.classes.tolist() == [[2, 1]]
    assert found.corners.tolist() == [[[12.0, 11.0, 20.0, 20.0]] * 2]  # clipped at the bottom
    assert found.scores[0].tolist() == pytest.approx(torch.tensor([0.0, 3.0, 1.0]).softmax(0)[1:].tolist())
    assert decode(logits, sides, (20, 25), 10, 99).classes.shape == (1, 12)


def test_overlaps_by_hand() -> None:
    ours = torch.tensor([[[0.0, 0.0, 2.0, 2.0], [5.0, 5.0, 5.0, 5.0]]])
    theirs = torch.tensor([[[0.0, 0.0, 2.0, 2.0], [1.0, 0.0, 3.0, 2.0], [2.0, 2.0, 4.0, 4.0], [5.0, 5.0, 5.0, 5.0]]])
    assert overlaps(ours, theirs).tolist() == [[[1.0, pytest.approx(1 / 3), 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]]]


def greedy(corners: list[list[float]], classes: list[int], scores: list[float], iou: float, score: float) -> list[bool]:
    kept: list[int] = []
    for place, box in enumerate(corners):
        good = scores[place] >= score
        for other in kept:
            if classes[other] != classes[place]:
                continue
            wide = min(box[2], corners[other][2]) - max(box[0], corners[other][0])
            high = min(box[3], corners[other][3]) - max(box[1], corners[other][1])
            shared = max(wide, 0.0) * max(high, 0.0)
            areas = [(b[2] - b[0]) * (b[3] - b[1]) for b in (box, corners[other])]
            good = good and shared / (sum(areas) - shared) <= iou
        if good:
            kept.append(place)
    return [place in kept for place in range(len(corners))]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("iou", [0.1, 0.5])
def test_suppression_is_the_greedy_loop(seed: int, iou: float) -> None:
    """Crowded boxes, so that long chains of one suppressing the next are there."""
    generator = torch.Generator().manual_seed(seed)
    low = 20 * torch.rand(3, 120, 2, generator=generator)
    corners = torch.cat([low, low + 4 + 8 * torch.rand(3, 120, 2, generator=generator)], dim=2)
    classes = torch.randint(1, 3, (3, 120), generator=generator)
    scores = torch.rand(3, 120, generator=generator).sort(dim=1, descending=True).values
    found = kept_boxes(Boxes(corners, classes, scores), iou, 0.2)
    for image in range(3):
        expected = greedy(corners[image].tolist(), classes[image].tolist(), scores[image].tolist(), iou, 0.2)
        assert found[image].tolist() == expected
    assert 0 < int(found.sum()) < found.numel() * 3 / 4


def test_a_chain() -> None:
    """Each overlaps the next by half: the first suppresses the second, which so cannot suppress the third."""
    corners = torch.tensor([[[x, 0.0, x + 3, 1.0] for x in (0.0, 1.0, 2.0, 3.0)]])
    boxes = Boxes(corners, torch.ones(1, 4).long(), torch.tensor([[0.9, 0.8, 0.7, 0.6]]))
    assert kept_boxes(boxes, 0.4, 0.0).tolist() == [[True, False, True, False]]
