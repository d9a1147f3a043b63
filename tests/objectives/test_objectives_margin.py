"""Margin ReLU and partial L2, and the margins that are learnt from the store."""

from __future__ import annotations

import pytest
import torch

from kdcache.errors import UsageError
from kdcache.objectives.margin import Margin
from kdcache.objectives.shapes import Shapes


def loss(student: tuple[int, ...], teacher: tuple[int, ...]) -> Margin:
    return Margin(Shapes((student,), (teacher,), torch.arange(4).numpy(), 3))


def identity(width: int, *space: int) -> Margin:
    """With r(s) = s."""
    made = loss((width, *space), (width, *space))
    with torch.no_grad():
        made.adapter.project.weight.copy_(torch.eye(width).view_as(made.adapter.project.weight))  # type: ignore[operator,arg-type]
        made.adapter.project.bias.zero_()  # type: ignore[operator,union-attr]
    return made


def test_by_hand() -> None:
    made = identity(1, 1, 3)
    teacher = torch.tensor([[[[-1.0, -3.0, 2.0]]]])  # margin -2: what is copied is -1, -2, 2
    student = torch.tensor([[[[-5.0, 0.0, 1.0]]]], requires_grad=True)
    value = made(student, teacher)
    value.backward()
    assert value.item() == pytest.approx((0 + 4 + 1) / 3)
    assert student.grad is not None
    torch.testing.assert_close(student.grad.flatten(), torch.tensor([0.0, 4.0, -2.0]) / 3)


def test_margins_are_the_means_of_all_negative_responses_seen() -> None:
    batches = torch.randn(4, 5, 3, 2, 2).split(1)
    made = identity(3, 2, 2)
    for batch in batches:
        made(batch[0], batch[0])
    everything = torch.cat([batch[0] for batch in batches]).movedim(1, 0).flatten(1)
    expected = torch.stack([channel[channel < 0].mean() for channel in everything])
    torch.testing.assert_close(made.margin, expected)
    assert made.seen.tolist() == (everything < 0).sum(1).tolist()


def test_evaluation_leaves_the_margins_and_a_checkpoint_carries_them() -> None:
    made = identity(3)
    rows = torch.randn(8, 3)
    made(rows, rows)
    again = loss((3,), (3,))
    again.load_state_dict(made.state_dict())
    later = torch.randn(8, 3)
    torch.testing.assert_close(again(rows, later), made(rows, later), rtol=0, atol=0)
    before = made.margin.clone()
    made.eval()(rows, rows - 10)
    torch.testing.assert_close(made.margin, before, rtol=0, atol=0)


def test_a_channel_that_is_never_negative_has_margin_0() -> None:
    made = identity(2)
    value = made(torch.tensor([[-1.0, -2.0]]), torch.tensor([[-1.0, 4.0]]))
    assert made.margin.tolist() == [-1, 0]
    assert value.item() == pytest.approx((0 + 36) / 2)


def test_tokens_as_sequences_and_as_rows_are_the_same() -> None:
    made, again = loss((5, 4), (5, 6)), loss((5, 4), (5, 6))
    again.load_state_dict(made.state_dict())
    student, teacher = torch.randn(3, 5, 4), torch.randn(3, 5, 6)
    torch.testing.assert_close(made(student, teacher), again(student.flatten(0, 1), teacher.flatten(0, 1)))
    torch.testing.assert_close(made.margin, again.margin)


def test_a_field_from_behind_a_relu_is_refused() -> None:
    with pytest.raises(UsageError, match="tapped behind a ReLU"):
        identity(3)(torch.randn(4, 3), torch.rand(4, 3))


def test_other_rows_are_refused() -> None:
    with pytest.raises(UsageError, match=r"margin: .* of the same rows"):
        identity(3)(torch.ones(2, 3), torch.ones(1, 3))
