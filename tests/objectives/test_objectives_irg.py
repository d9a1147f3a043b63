"""Instance relationship graphs by hand, level by level."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from kdcache.errors import UsageError
from kdcache.objectives.irg import irg


def column(*values: float) -> Tensor:
    return torch.tensor(values)[:, None]


STUDENT = [column(0, 1, 2), column(0, 2, 2), torch.tensor([[1.0, 0.0], [0.0, 0.0], [2.0, 0.0]])]
TEACHER = [column(0, 2, 2), column(0, 0, 4), torch.zeros(3, 2)]


def test_vertices_by_hand() -> None:
    assert irg(STUDENT, TEACHER, w_vertex=3.0, w_edge=0.0, w_transform=0.0).item() == pytest.approx(3 * 5 / 6)


def test_edges_by_hand() -> None:
    """Pairs 01, 02, 12: (1, 4, 1) / 4 against (4, 4, 0) / 4, and (4, 4, 0) / 4 against (0, 16, 16) / 16."""
    first, second = 2 * (0.75**2 + 0.25**2) / 9, 2 * (1 + 1) / 9
    found = irg(STUDENT, TEACHER, w_vertex=0.0, w_edge=2.0, w_transform=0.0)
    assert found.item() == pytest.approx(2 * (first + second) / 2)


def test_transformations_by_hand() -> None:
    """(0, 1, 0) against (0, 4, 4) / 4."""
    found = irg(STUDENT, TEACHER, w_vertex=0.0, w_edge=0.0, w_transform=5.0)
    assert found.item() == pytest.approx(5 / 3)


def test_they_add_up_with_the_published_weights() -> None:
    parts = [(0.1, 0.0, 0.0), (0.0, 5.0, 0.0), (0.0, 0.0, 5.0)]
    total = sum(irg(STUDENT, TEACHER, w_vertex=v, w_edge=e, w_transform=t).item() for v, e, t in parts)
    assert irg(STUDENT, TEACHER).item() == pytest.approx(total)


def test_a_layer_of_twice_the_channels_and_half_the_space_is_matched_as_published() -> None:
    """Space of the first by its mean over 2 x 2, channels of the second by the mean of every two."""
    generator = torch.Generator().manual_seed(2)
    sides = []
    steps = []
    for _ in range(2):
        x, y = torch.randn(4, 3, 4, 4, generator=generator), torch.randn(4, 6, 2, 2, generator=generator)
        sides.append([x, y, torch.zeros(4, 2)])
        small = x.unfold(2, 2, 2).unfold(3, 2, 2).mean(dim=(-2, -1))
        step = (small - (y[:, 0::2] + y[:, 1::2]) / 2).square().sum(dim=(1, 2, 3))
        steps.append(step / step.max())
    found = irg(*sides, w_vertex=0.0, w_edge=0.0, w_transform=1.0)
    assert found.item() == pytest.approx((steps[0] - steps[1]).square().mean().item(), rel=1e-5)


def test_a_vector_is_no_step_from_its_map() -> None:
    """Three levels of which the last is a vector: the step between the maps alone."""
    generator = torch.Generator().manual_seed(3)
    sides = [[torch.randn(5, 3, 4, 4, generator=generator) for _ in range(2)] for _ in range(2)]
    alike = torch.zeros(5, 2)
    pooled = [[*side, side[-1].mean(dim=(2, 3)), alike] for side in sides]
    weights: dict[str, Any] = {"w_vertex": 0.0, "w_edge": 0.0}
    assert irg(*pooled, **weights).item() == irg(*([*side, alike] for side in sides), **weights).item()
    # A teacher stored pooled has no step between two maps of the student's that it could be compared with ...
    teacher = [sides[1][0], sides[1][1].mean(dim=(2, 3)), alike]
    with pytest.raises(UsageError, match=r"irg: no two neighbours of the 2 levels .* or set w_transform = 0"):
        irg([*sides[0], alike], teacher)
    # ... unless both of its levels are.
    teacher[0] = teacher[0].mean(dim=(2, 3))
    assert irg([*sides[0], alike], teacher).isfinite()


def test_scale_of_levels_and_their_rotation() -> None:
    generator = torch.Generator().manual_seed(4)
    student, teacher = ([torch.randn(6, 4, generator=generator) for _ in range(2)] for _ in range(2))
    alike = [torch.zeros(6, 2)]
    edges = {"w_vertex": 0.0, "w_transform": 0.0}
    rotation, _ = torch.linalg.qr(torch.randn(4, 4, generator=generator))
    value = irg(student + alike, teacher + alike, **edges).item()
    moved = [9 * student[0] @ rotation + 4, student[1] / 7]
    assert irg(moved + alike, teacher + alike, **edges).item() == pytest.approx(value, rel=1e-4)
    steps = {"w_vertex": 0.0, "w_edge": 0.0}
    value = irg(student + alike, teacher + alike, **steps).item()
    assert irg([30 * x for x in student] + alike, teacher + alike, **steps).item() == pytest.approx(value, rel=1e-5)
    assert irg(moved + alike, teacher + alike, **steps).item() != pytest.approx(value, rel=1e-2)


LOGITS = torch.zeros(4, 3)


@pytest.mark.parametrize(
    ("students", "teachers", "options", "message"),
    [
        ([LOGITS], [LOGITS], {}, "1 of the student's tensors and 1 of the teacher's: give as many"),
        ([LOGITS] * 3, [LOGITS] * 2, {}, "3 of the student's tensors and 2 of the teacher's"),
        ([LOGITS] * 3, [LOGITS, LOGITS, LOGITS[:, :2]], {}, r"vertices, .* are \[4, 3\] of the student's and \[4, 2\]"),
        ([LOGITS] * 3, [LOGITS, LOGITS[:3], LOGITS], {}, r"teacher's \[\[4, 3\], \[3, 3\], \[4, 3\]\]; .* same rows"),
        ([LOGITS[..., None], LOGITS, LOGITS], [LOGITS] * 3, {}, r"\[4, 3, 1\]"),
        ([LOGITS] * 2, [LOGITS] * 2, {}, "no two neighbours of the 1 levels"),
        ([LOGITS] * 3, [LOGITS] * 3, {"w_edge": -1.0}, r"w_vertex, w_edge, w_transform = 0\.1, -1\.0, 5\.0"),
        ([LOGITS] * 3, [LOGITS] * 3, {"w_edge": math.nan}, "none below 0"),
        ([LOGITS] * 3, [LOGITS] * 3, {"w_vertex": 0.0, "w_edge": 0.0, "w_transform": 0.0}, "not all 0"),
        ([LOGITS[:2]] * 3, [LOGITS[:2]] * 3, {}, "at least three rows, and this batch has 2"),
    ],
)
def test_what_is_refused(
    students: list[Tensor], teachers: list[Tensor], options: dict[str, float], message: str
) -> None:
    with pytest.raises(UsageError, match=f"irg: .*{message}"):
        irg(students, teachers, **options)
