"""Knowledge review: fused levels, and the hierarchical context loss."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from kdcache.errors import UsageError
from kdcache.objectives.review import Review, hcl
from kdcache.objectives.shapes import Shapes

STUDENT, TEACHER = [(4, 8, 8), (8, 4, 4), (8,)], [(6, 8, 8), (9, 5, 5), (10,)]


def loss(student: Any = STUDENT, teacher: Any = TEACHER, **options: Any) -> Review:
    return Review(Shapes(tuple(student), tuple(teacher), torch.arange(4).numpy(), 3), **options)


def drawn(sides: Any, rows: int) -> list[torch.Tensor]:
    return [torch.randn(rows, *shape) for shape in sides]


def test_hcl_by_hand() -> None:
    nothing = torch.zeros(2, 3, 2, 2)
    checkers = torch.tensor([[1.0, -1.0], [-1.0, 1.0]]).expand(2, 3, 2, 2)
    assert hcl(nothing, checkers).item() == pytest.approx((1 + 0 / 2) / 1.5)
    assert hcl(nothing[..., :1], checkers[..., :1]).item() == pytest.approx(1)  # one place wide: nothing to pool
    halves = torch.tensor([0.0, 0, 0, 0, 2, 2, 2, 2]).expand(2, 3, 8, 8)  # 4 x 4 and 2 x 2 keep them, 1 x 1 is 1
    assert hcl(torch.zeros(2, 3, 8, 8), halves).item() == pytest.approx((2 + 2 / 2 + 2 / 4 + 1 / 8) / 1.875)


def test_a_vector_is_a_map_of_one_place() -> None:
    made = loss()
    again = loss([*STUDENT[:2], (8, 1, 1)], [*TEACHER[:2], (10, 1, 1)])
    again.load_state_dict(made.state_dict())
    ours, theirs = drawn(STUDENT, 6), drawn(TEACHER, 6)
    value = made(ours, theirs)
    torch.testing.assert_close(
        again([*ours[:2], ours[2][..., None, None]], [*theirs[:2], theirs[2][..., None, None]]), value
    )


def test_deeper_levels_reach_shallower_ones_and_not_the_other_way() -> None:
    made = loss().eval()
    ours = [level.requires_grad_() for level in drawn(STUDENT, 3)]
    theirs = drawn(TEACHER, 3)
    compared, _ = made.fusions[2](ours[2][..., None, None], None, (1, 1))
    shallow, _ = made.fusions[0](ours[0], torch.zeros(3, 8, 1, 1), (8, 8))
    assert compared.shape == (3, 10, 1, 1)
    assert shallow.shape == (3, 6, 8, 8)
    made(ours, theirs).backward()
    assert all(level.grad is not None and level.grad.any() for level in ours)
    assert all(p.grad is not None for p in made.parameters())


def test_it_can_be_learnt() -> None:
    torch.manual_seed(0)
    made = loss(width=4)
    assert made.fusions[0].enter[0].weight.shape == (4, 4, 1, 1)  # type: ignore[index,union-attr]
    ours, theirs = drawn(STUDENT, 8), drawn(TEACHER, 8)
    optimiser = torch.optim.Adam(made.parameters(), 0.02)
    first = made(ours, theirs).item()
    for _ in range(40):
        optimiser.zero_grad()
        made(ours, theirs).backward()
        optimiser.step()
    assert made(ours, theirs).item() < 0.9 * first


def test_one_row_of_one_place() -> None:
    with pytest.raises(UsageError, match="every micro-batch have two rows"):
        loss()(drawn(STUDENT, 1), drawn(TEACHER, 1))
    assert loss().eval()(drawn(STUDENT, 1), drawn(TEACHER, 1)).isfinite()


def test_no_rows_leave_the_statistics() -> None:
    made = loss()
    assert made(drawn(STUDENT, 0), drawn(TEACHER, 0)).item() == 0
    assert all(buffer.isfinite().all() for buffer in made.buffers())


@pytest.mark.parametrize(
    ("student", "teacher", "said"),
    [
        (STUDENT[:2], TEACHER, "as many of each"),
        (STUDENT[:1], TEACHER[:1], "at least two"),
        (STUDENT[::-1], TEACHER[::-1], "from shallow to deep"),
        ([*STUDENT[:2], (5, 8)], TEACHER, r"maps \[D, H, W\] and vectors"),
    ],
)
def test_levels_that_do_not_go_together(student: Any, teacher: Any, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        loss(student, teacher)


def test_what_else_is_refused() -> None:
    with pytest.raises(UsageError, match="width = -1"):
        loss(width=-1)
    with pytest.raises(UsageError, match="built for 3 levels"):
        loss()(drawn(STUDENT[:2], 3), drawn(TEACHER[:2], 3))
    with pytest.raises(UsageError, match="of the same rows"):
        loss()(drawn(STUDENT, 3), drawn(TEACHER, 2))
