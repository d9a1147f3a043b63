"""What the relational losses share, and what each of them owes beside the conformance class."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor

from kdcache.errors import UsageError
from kdcache.objectives.cc import cc
from kdcache.objectives.irg import irg
from kdcache.objectives.pkt import pkt
from kdcache.objectives.relations import unit
from kdcache.objectives.rkd import rkd_angle, rkd_distance
from kdcache.objectives.sp import sp

Loss = Callable[[Tensor, Tensor], Tensor]


def irg_relations(student: Tensor, teacher: Tensor) -> Tensor:
    """Edges and a step of the graph over two levels made of one."""
    alike = torch.zeros(len(student), 2)
    sides = [[feature, feature.square(), alike] for feature in (student, teacher)]
    return irg(*sides, w_vertex=0.0)


LOSSES = {
    "rkd_distance": rkd_distance,
    "rkd_angle": rkd_angle,
    "cc": cc,
    "cc_bilinear": partial(cc, kernel="bilinear"),
    "sp": sp,
    "pkt": pkt,
    "irg": irg_relations,
}
every = pytest.mark.parametrize("name", LOSSES)


def drawn(rows: int = 7, student: int = 5, teacher: int = 8) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    return torch.randn(rows, student, generator=generator) + 1, torch.randn(rows, teacher, generator=generator) - 1


def turned(feature: Tensor) -> Tensor:
    """By a random rotation."""
    width = feature.shape[1]
    rotation, _ = torch.linalg.qr(torch.randn(width, width, generator=torch.Generator().manual_seed(4)))
    return feature @ rotation


@every
def test_the_teachers_own_relations_cost_nothing(name: str) -> None:
    student, teacher = drawn(student=8)
    loss = LOSSES[name]
    assert loss(teacher, teacher).item() == pytest.approx(0, abs=1e-9)
    assert loss(student, teacher).item() > 1e-4


@pytest.mark.parametrize("name", ["rkd_distance", "rkd_angle", "cc", "cc_bilinear", "sp", "pkt"])
def test_scale_and_rotation_do_not_matter(name: str) -> None:
    loss = LOSSES[name]
    student, teacher = drawn()
    value = loss(student, teacher).item()
    assert loss(300 * turned(student), turned(teacher) / 50).item() == pytest.approx(value, rel=1e-4)


@pytest.mark.parametrize("name", ["rkd_distance", "rkd_angle"])
def test_translation_does_not_matter(name: str) -> None:
    student, teacher = drawn()
    value = LOSSES[name](student, teacher).item()
    assert LOSSES[name](student + 3, teacher - 7).item() == pytest.approx(value, rel=1e-4)


@pytest.mark.parametrize("name", ["cc", "cc_bilinear", "pkt"])
def test_the_length_of_a_row_does_not_matter(name: str) -> None:
    student, teacher = drawn()
    value = LOSSES[name](student, teacher).item()
    lengths = torch.arange(1, 8)[:, None]
    assert LOSSES[name](student * lengths, teacher / lengths).item() == pytest.approx(value, rel=1e-4)


@every
def test_maps_are_compared_as_rows(name: str) -> None:
    generator = torch.Generator().manual_seed(5)
    student, teacher = torch.randn(5, 3, 2, 4, generator=generator), torch.randn(5, 2, 3, 3, generator=generator)
    loss = LOSSES[name]
    assert loss(student, teacher).item() == pytest.approx(loss(student.flatten(1), teacher.flatten(1)).item(), rel=1e-5)


@every
@pytest.mark.parametrize("kind", ["equal", "zero", "all equal", "all zero"])
def test_equal_rows_and_rows_of_zeros_are_no_danger(name: str, kind: str) -> None:
    """The teacher tells them apart, so that the loss wants to pull on what has no direction."""
    student, teacher = drawn()
    if kind == "equal":
        student[2] = student[5]
    elif kind == "zero":
        student[2] = student[5] = 0
    else:
        student = student[:1].repeat(7, 1) * (kind == "all equal")
    ours = student.requires_grad_()
    value = LOSSES[name](ours, teacher)
    value.backward()
    assert value.isfinite()
    assert ours.grad is not None
    assert ours.grad.isfinite().all()
    assert ours.grad.abs().max() < 100  # 0/0 kept finite by a small number would be millions
    assert LOSSES[name](teacher, ours.detach()).isfinite()


@every
def test_learning_it_works(name: str) -> None:
    """A student of another width that starts from noise takes on the teacher's relations."""
    _, teacher = drawn(rows=8, teacher=3)
    student = torch.randn(8, 4, generator=torch.Generator().manual_seed(6)).requires_grad_()
    optimizer = torch.optim.Adam([student], lr=0.05)
    loss = LOSSES[name]
    before = loss(student, teacher).item()
    for _ in range(150):
        optimizer.zero_grad()
        loss(student, teacher).backward()
        optimizer.step()
    assert loss(student, teacher).item() < before / 5


@pytest.mark.parametrize(
    ("name", "least", "number"),
    [
        *[(name, 3, "three") for name in ("rkd_distance", "rkd_angle", "irg")],
        *[(name, 2, "two") for name in ("cc", "cc_bilinear", "sp", "pkt")],
    ],
)
def test_small_batches(name: str, least: int, number: str) -> None:
    loss, shown = LOSSES[name], name.removesuffix("_bilinear")
    student, teacher = drawn(rows=least)
    assert loss(student, teacher).isfinite()
    for rows in range(least):
        with pytest.raises(UsageError, match=rf"{shown}: .* needs at least {number} rows, and this batch has {rows}: "):
            loss(student[:rows], teacher[:rows])


@pytest.mark.parametrize("name", ["rkd_distance", "rkd_angle", "cc", "sp", "pkt"])
def test_what_is_refused(name: str) -> None:
    loss = LOSSES[name]
    with pytest.raises(UsageError, match=f"{name}: the student's feature has 4 rows and the teacher's 5"):
        loss(torch.ones(4, 2), torch.ones(5, 2))
    with pytest.raises(UsageError, match=rf"{name}: the teacher's feature is \[4\]; .* choose another tap or field"):
        loss(torch.ones(4, 2), torch.ones(4))


def test_unit() -> None:
    vectors = torch.tensor([[3.0, 4.0], [0.0, 0.0], [0.0, -2.0]], requires_grad=True)
    found = unit(vectors)
    torch.testing.assert_close(found, torch.tensor([[0.6, 0.8], [0.0, 0.0], [0.0, -1.0]]))
    found.sum().backward()
    # The part of (1, 1) across (0.6, 0.8), over 5; nothing for a vector without a direction.
    torch.testing.assert_close(vectors.grad, torch.tensor([[0.032, -0.024], [0.0, 0.0], [0.5, 0.0]]))
