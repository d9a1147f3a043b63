"""Losses on values by hand; what is not known; shapes that do not fit."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from kdcache.errors import UsageError
from kdcache.objectives.regression import huber, l1, mse

Loss = Callable[[Tensor, Tensor], Tensor]
every = pytest.mark.parametrize("loss", [mse, l1, huber])


def test_by_hand() -> None:
    """Differences 1, -3, 0 and one that is not known."""
    student = torch.tensor([[1.0, 0.0], [2.0, 9.0]])
    target = torch.tensor([[0.0, 3.0], [2.0, math.nan]])
    assert mse(student, target).item() == pytest.approx(10 / 3)
    assert l1(student, target).item() == pytest.approx(4 / 3)
    assert huber(student, target).item() == pytest.approx((0.5 + 2.5) / 3)
    assert huber(student, target, delta=2.0).item() == pytest.approx((0.5 + 4.0) / 3)


@every
def test_what_is_not_known_has_no_gradient(loss: Loss) -> None:
    student = torch.tensor([[5.0, 1.0]], requires_grad=True)
    loss(student, torch.tensor([[math.nan, 0.0]])).backward()  # type: ignore[no-untyped-call]
    assert student.grad is not None
    assert student.grad[0, 0] == 0
    assert student.grad[0, 1] > 0


@every
def test_nothing_known_is_nothing(loss: Loss) -> None:
    student = torch.ones(2, 3, requires_grad=True)
    value = loss(student, torch.full((2, 3), math.nan))
    value.backward()  # type: ignore[no-untyped-call]
    assert value.item() == 0
    assert student.grad is not None
    assert not student.grad.any()


@every
def test_pixels_are_their_numbers(loss: Loss) -> None:
    picture = torch.tensor([[[[0, 255], [128, 7]]]], dtype=torch.uint8)
    assert loss(torch.tensor([[0.0, 255.0, 128.0, 7.0]]), picture).item() == 0
    assert loss(torch.tensor([[0.0, 254.5, 128.0, 7.0]]), picture).item() > 0


def test_the_ends_of_huber() -> None:
    generator = torch.Generator().manual_seed(0)
    student, target = torch.randn(4, 5, generator=generator), torch.randn(4, 5, generator=generator)
    assert 2 * huber(student, target, delta=1e4).item() == pytest.approx(mse(student, target).item())
    assert huber(student, target, delta=1e-6).item() * 1e6 == pytest.approx(l1(student, target).item(), rel=1e-5)


@every
@pytest.mark.parametrize("shape", [(3, 4), (2, 5)])
def test_other_sizes_are_refused(loss: Loss, shape: tuple[int, int]) -> None:
    with pytest.raises(UsageError, match=r"output is \[2, 4\] and the target .* set the student's number of outputs"):
        loss(torch.zeros(2, 4), torch.zeros(shape))


@pytest.mark.parametrize("delta", [0.0, -1.0, math.inf, math.nan])
def test_delta_out_of_range(delta: float) -> None:
    with pytest.raises(UsageError, match=r"delta = .*above 0"):
        huber(torch.zeros(1, 1), torch.zeros(1, 1), delta=delta)
