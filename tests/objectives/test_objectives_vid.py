"""Variational information distillation."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn

from kdcache.errors import UsageError
from kdcache.objectives.shapes import Shapes
from kdcache.objectives.vid import Vid


def loss(student: tuple[int, ...], teacher: tuple[int, ...], **options: Any) -> Vid:
    return Vid(Shapes((student,), (teacher,), torch.arange(4).numpy(), 3), **options)


def identity(module: Vid) -> Vid:
    """The regressor becomes relu(relu(s))."""
    with torch.no_grad():
        for layer in module.regressor:
            if not isinstance(layer, nn.ReLU):
                layer.weight.copy_(torch.eye(len(layer.weight)).view_as(layer.weight))  # type: ignore[operator,arg-type]
    return module


@pytest.mark.parametrize("variance", [0.01, 5.0, 200.0])
def test_by_hand(variance: float) -> None:
    made = identity(loss((2,), (2,), variance=variance))
    value = made(torch.tensor([[2.0, -1.0]]), torch.tensor([[5.0, 1.0]]))
    assert value.item() == pytest.approx((math.log(variance) + (9 + 1) / 2 / variance) / 2, rel=1e-5)


def test_the_variance_settles_at_the_mean_squared_error_of_its_channel() -> None:
    made = identity(loss((2, 3, 3), (2, 3, 3)))
    student = torch.rand(8, 2, 3, 3)
    teacher = student + torch.tensor([0.5, 2.0])[:, None, None] * torch.randn(8, 2, 3, 3)
    error = (teacher - student).square().mean(dim=(0, 2, 3))
    with torch.no_grad():
        made.raw_variance.copy_((error - 1e-5).expm1().log())
    made(student, teacher).backward()
    assert made.raw_variance.grad is not None
    torch.testing.assert_close(made.raw_variance.grad, torch.zeros(2), rtol=0, atol=1e-6)


def test_everything_is_learnt() -> None:
    made = loss((3, 4, 4), (5, 2, 2), hidden=6)
    made(torch.randn(4, 3, 4, 4), torch.randn(4, 5, 2, 2)).backward()
    assert {name: tuple(p.shape) for name, p in made.named_parameters()} == {
        "raw_variance": (5,),
        "regressor.0.weight": (6, 3, 1, 1),
        "regressor.2.weight": (6, 6, 1, 1),
        "regressor.4.weight": (5, 6, 1, 1),
    }
    assert all(p.grad is not None and p.grad.any() for p in made.parameters())


def test_tokens_as_sequences_and_as_rows_are_the_same() -> None:
    made = loss((5, 4), (5, 6))
    student, teacher = torch.randn(3, 5, 4), torch.randn(3, 5, 6)
    torch.testing.assert_close(made(student, teacher), made(student.flatten(0, 1), teacher.flatten(0, 1)))


@pytest.mark.parametrize("options", [{"hidden": -1}, {"variance": 1e-6}, {"smallest": 0.0}, {"variance": math.inf}])
def test_options_out_of_range(options: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="vid: "):
        loss((3,), (4,), **options)


def test_other_rows_are_refused() -> None:
    with pytest.raises(UsageError, match=r"vid: .* of the same rows"):
        loss((3,), (4,))(torch.ones(2, 3), torch.ones(1, 4))
