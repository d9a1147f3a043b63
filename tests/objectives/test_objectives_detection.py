"""Losses of dense detectors by hand: who owns a position, the focal loss, boxes, the weight of the background."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from kdcache.codecs import SparseLogits
from kdcache.errors import UsageError
from kdcache.objectives import kd
from kdcache.objectives.detection import detection, detection_boxes, kd_foreground
from kdcache.objectives.sides import generalised_overlap, grid_centres

EVEN = math.log(1 / 3)  # of three equal logits


def two_by_two(boxes: list[list[float]], classes: list[int], **options: Any) -> tuple[Tensor, Tensor]:
    """Loss of equal logits of 2 classes on a 2 x 2 grid of stride 10, all sides 5; and which positions are positive."""
    logits = torch.zeros(1, 4, 3, requires_grad=True)
    value = detection(
        logits,
        torch.full((1, 4, 4), 5.0),
        torch.tensor([boxes]).reshape(1, -1, 4),
        torch.tensor([classes], dtype=torch.long).reshape(1, -1),
        stride=10,
        width=20,
        **options,
    )
    (slope,) = torch.autograd.grad(value, logits)
    return value.detach(), slope[0, :, 1:].argmin(dim=1) + 1 if classes else slope[0, :, 0]


class TestAssignment:
    def test_by_hand(self) -> None:
        """The box is the cell of the first position, whose sides of 5 are exact: no box loss, 3 of 4 background."""
        value, _ = two_by_two([[0.0, 0.0, 10.0, 10.0]], [2])
        focal = -((2 / 3) ** 2) * EVEN
        assert value.item() == pytest.approx(0.25 * focal + 3 * 0.75 * focal, rel=1e-6)

    def test_the_box_loss_by_hand(self) -> None:
        """The box is twice as high downwards: I / U = 1/2, and the hull is the union, so 1 - GIoU = 1/2. Its middle is
        at 10, 5 from both positions of the column, and both are inside."""
        with_boxes, _ = two_by_two([[0.0, 0.0, 10.0, 20.0]], [1], box_weight=2.0)
        without, _ = two_by_two([[0.0, 0.0, 10.0, 20.0]], [1], box_weight=0.0)
        assert (with_boxes - without).item() == pytest.approx(2.0 * (0.5 + 0.5) / 2, rel=1e-6)

    def test_only_the_middle_is_positive(self) -> None:
        """All four centres are inside; with a radius of 0.4 none is near the middle at 10, 10 (5 = 0.5 * 10 away)."""
        focal = -((2 / 3) ** 2) * EVEN
        all_four, _ = two_by_two([[0.0, 0.0, 20.0, 20.0]], [1], radius=0.5, box_weight=0.0)
        none, _ = two_by_two([[0.0, 0.0, 20.0, 20.0]], [1], radius=0.4, box_weight=0.0)
        assert all_four.item() == pytest.approx(4 * 0.25 * focal / 4, rel=1e-6)
        assert none.item() == pytest.approx(4 * 0.75 * focal, rel=1e-6)

    def test_the_smallest_box_has_it(self) -> None:
        boxes = [[0.0, 0.0, 20.0, 20.0], [0.0, 0.0, 10.0, 10.0]]
        for order, classes in ((boxes, [1, 2]), (boxes[::-1], [2, 1])):
            _, kinds = two_by_two(order, classes)
            assert kinds.tolist() == [2, 1, 1, 1]

    def test_nothing_to_find(self) -> None:
        focal = -((2 / 3) ** 2) * EVEN
        for boxes, classes in (([], []), ([[-1.0] * 4], [-1]), ([[2.0, 2.0, 4.0, 4.0]], [1])):
            value, _ = two_by_two(boxes, classes)
            assert value.item() == pytest.approx(4 * 0.75 * focal, rel=1e-6)

    def test_padding_changes_nothing(self) -> None:
        one, _ = two_by_two([[1.0, 2.0, 9.0, 13.0]], [1])
        padded, _ = two_by_two([[1.0, 2.0, 9.0, 13.0], [-1.0] * 4], [1, -1])
        assert one.item() == padded.item()


def test_a_perfect_detector_has_no_loss() -> None:
    logits = torch.full((1, 4, 3), -50.0)
    logits[0, 1:, 0] = logits[0, 0, 2] = 50.0
    boxes, classes = torch.tensor([[[0.0, 0.0, 10.0, 10.0]]]), torch.tensor([[2]])
    logits.requires_grad_()
    value = detection(logits, torch.full((1, 4, 4), 5.0), boxes, classes, stride=10, width=20)
    value.backward()  # type: ignore[no-untyped-call]
    assert value.item() == pytest.approx(0, abs=1e-6)
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


def test_centres_run_row_by_row() -> None:
    found = grid_centres(6, 8, 3, torch.zeros(()))
    assert found.tolist() == [[4, 4], [12, 4], [20, 4], [4, 12], [12, 12], [20, 12]]


def test_generalised_overlap_by_hand() -> None:
    """Equal; side by side, touching: U = H = 8; corner to corner: U = 2, H = 4; and without area."""
    ours = torch.tensor([[1.0, 1.0, 1.0, 1.0], [2.0, 1.0, 0.0, 1.0], [1.0, 1.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]])
    theirs = torch.tensor([[1.0, 1.0, 1.0, 1.0], [0.0, 1.0, 2.0, 1.0], [0.0, 0.0, 1.0, 1.0], [0.0, 0.0, 0.0, 0.0]])
    assert generalised_overlap(ours, theirs).tolist() == pytest.approx([1.0, 0.0, -0.5, -1.0])


class TestBoxesOfATeacher:
    def test_by_hand(self) -> None:
        """Two positions of weights 1/2 and 1/4 (p(background) 1/2 and 3/4); the first is right, the second off by 1 on
        one side of a box of 2 x 2: I / U = 4/6."""
        logits = torch.tensor([[[0.0, 0.0], [math.log(3.0), 0.0]]])
        teacher = torch.ones(1, 2, 4)
        student = torch.tensor([[[1.0, 1.0, 1.0, 1.0], [2.0, 1.0, 1.0, 1.0]]])
        assert detection_boxes(student, teacher, logits).item() == pytest.approx((1 / 4) * (1 / 3) / (3 / 4))
        far = detection_boxes(student, teacher, logits, measure="l1").item()
        assert far == pytest.approx((1 / 4) * (1 / 4) / (3 / 4))

    def test_giou_does_not_see_the_scale(self) -> None:
        generator = torch.Generator().manual_seed(0)
        student, teacher = 1 + torch.rand(2, 3, 5, 4, generator=generator)
        logits = torch.randn(3, 5, 4, generator=generator)
        one = detection_boxes(student, teacher, logits).item()
        assert detection_boxes(7 * student, 7 * teacher, logits).item() == pytest.approx(one, rel=1e-5)

    def test_a_blind_teacher_teaches_nothing(self) -> None:
        logits = torch.tensor([[[1e4, 0.0, 0.0]]])
        assert detection_boxes(torch.ones(1, 1, 4), 2 * torch.ones(1, 1, 4), logits).item() == 0

    def test_another_grid_is_refused(self) -> None:
        with pytest.raises(UsageError, match=r"\[1, 4, 4\] and the teacher's \[1, 9, 4\]; .* same grid"):
            detection_boxes(torch.ones(1, 4, 4), torch.ones(1, 9, 4), torch.zeros(1, 9, 3))
        with pytest.raises(UsageError, match=r"logits \[1, 3\]"):
            detection_boxes(torch.ones(1, 4, 4), torch.ones(1, 4, 4), torch.zeros(1, 3))


class TestForeground:
    def test_by_hand(self) -> None:
        """Weights 1/2 and 1/4; only the second row differs: KL((3/4, 1/4) || (1/2, 1/2))."""
        teacher = torch.tensor([[0.0, 0.0], [math.log(3.0), 0.0]])
        off = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
        assert kd_foreground(torch.zeros(2, 2), teacher).item() == pytest.approx((1 / 4) * off / (3 / 4))

    def test_at_full_background_it_is_kd(self) -> None:
        generator = torch.Generator().manual_seed(0)
        student, teacher = torch.randn(2, 30, 4, generator=generator)
        value = kd_foreground(student, teacher, temperature=3.0, background=1.0)
        assert value.item() == pytest.approx(kd(student, teacher, temperature=3.0).item(), rel=1e-6)

    def test_sure_background_teaches_nothing_and_does_not_count(self) -> None:
        generator = torch.Generator().manual_seed(0)
        student, teacher = torch.randn(2, 5, 4, generator=generator)
        alone = kd_foreground(student, teacher).item()
        empty = torch.tensor([[200.0, 0.0, 0.0, 0.0]]).expand(50, 4)
        crowd = kd_foreground(
            torch.cat([student, torch.randn(50, 4, generator=generator)]), torch.cat([teacher, empty])
        )
        assert crowd.item() == pytest.approx(alone, rel=1e-6)
        assert kd_foreground(torch.ones(50, 4), empty).item() == 0

    def test_refusals(self) -> None:
        sparse = SparseLogits(torch.zeros(2, 1, dtype=torch.long), torch.zeros(2, 1), torch.zeros(2, 1), 3, (1.0,))
        with pytest.raises(UsageError, match=r"SparseLogits need not keep; dump the field as dense"):
            kd_foreground(torch.zeros(2, 3), sparse)  # type: ignore[arg-type]
        with pytest.raises(UsageError, match=r"background = 1\.5 is a weight from 0 to 1"):
            kd_foreground(torch.zeros(2, 3), torch.zeros(2, 3), background=1.5)
        with pytest.raises(UsageError, match="3 outputs, the store's logits have 4"):
            kd_foreground(torch.zeros(2, 3), torch.zeros(2, 4))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"stride": 7}, r"4 positions are no rows of 3, which width = 20 at stride = 7 makes"),
        ({"stride": 0}, r"stride = 0 and width = 20 are in pixels, at least 1"),
        ({"alpha": 1.5}, r"alpha = 1\.5 is a share"),
        ({"radius": 0.0}, r"radius = 0\.0 is above 0"),
        ({"gamma": -1.0}, r"gamma = -1\.0"),
    ],
)
def test_options_that_cannot_be(change: dict[str, Any], message: str) -> None:
    options: dict[str, Any] = {"stride": 10, "width": 20, **change}
    with pytest.raises(UsageError, match=message):
        detection(torch.zeros(1, 4, 3), torch.ones(1, 4, 4), torch.zeros(1, 1, 4), torch.ones(1, 1).long(), **options)


@pytest.mark.parametrize(
    ("logits", "sides", "boxes", "classes", "message"),
    [
        ((1, 4, 3), (1, 4, 2), (1, 1, 4), (1, 1), r"its boxes \[1, 4, 2\]; a dense detector gives"),
        ((4, 3), (4, 4), (1, 1, 4), (1, 1), r"logits are \[4, 3\]"),
        ((1, 4, 3), (1, 4, 4), (1, 2, 4), (1, 1), r"the boxes are \[1, 2, 4\] and their classes \[1, 1\]"),
        ((2, 4, 3), (2, 4, 4), (1, 1, 4), (1, 1), r"of 2 images the boxes are \[1, 1, 4\]"),
        ((1, 4, 2), (1, 4, 4), (1, 1, 4), (1, 1), r"classes are \[2\], and the student's 2 outputs, .* take 1 to 1"),
    ],
)
def test_shapes_that_do_not_fit(logits: Any, sides: Any, boxes: Any, classes: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        detection(
            torch.zeros(logits), torch.ones(sides), torch.zeros(boxes), torch.full(classes, 2), stride=10, width=20
        )


def test_classes_that_begin_at_0_are_refused() -> None:
    """They would teach that the first class is background, without a word."""
    with pytest.raises(UsageError, match=r"classes are \[-1, 0, 1\], .* of which 0 is the background"):
        two_by_two([[0.0, 0.0, 10.0, 10.0], [5.0, 5.0, 20.0, 20.0], [-1.0] * 4], [0, 1, -1])
