"""The direction of hidden states."""

from __future__ import annotations

import math

import pytest
import torch

from kdcache.errors import UsageError
from kdcache.objectives.cosine import Cosine
from kdcache.objectives.shapes import Shapes


def loss(student: tuple[int, ...], teacher: tuple[int, ...]) -> Cosine:
    return Cosine(Shapes((student,), (teacher,), torch.arange(4).numpy(), 3))


def test_by_hand() -> None:
    student = torch.tensor([[1.0, 0.0], [2.0, 0.0], [0.0, 3.0]])
    teacher = torch.tensor([[1.0, 1.0], [-5.0, 0.0], [0.0, 0.1]])
    assert loss((2,), (2,))(student, teacher).item() == pytest.approx((1 - 1 / math.sqrt(2) + 2 + 0) / 3)


def test_it_has_no_parameters_unless_the_widths_differ() -> None:
    assert not list(loss((4,), (4,)).parameters())
    assert not list(loss((4, 8, 8), (4, 2, 2)).parameters())
    assert not list(loss((5, 4), (5, 4)).parameters())
    assert [tuple(p.shape) for p in loss((4,), (6,)).parameters()] == [(6, 4), (6,)]


def test_lengths_do_not_matter() -> None:
    student, teacher = torch.randn(6, 4), torch.randn(6, 4)
    value = loss((4,), (4,))(student, teacher)
    torch.testing.assert_close(loss((4,), (4,))(1e-8 * student, 1e8 * teacher), value)


def test_tokens_as_sequences_and_as_rows_are_the_same() -> None:
    made = loss((5, 4), (5, 6))
    student, teacher = torch.randn(3, 5, 4), torch.randn(3, 5, 6)
    torch.testing.assert_close(made(student, teacher), made(student.flatten(0, 1), teacher.flatten(0, 1)))


def test_tokens_meet_a_vector_as_their_mean() -> None:
    student, teacher = torch.randn(3, 5, 4), torch.randn(3, 4)
    torch.testing.assert_close(loss((5, 4), (4,))(student, teacher), loss((4,), (4,))(student.mean(1), teacher))


def test_a_vector_of_zeros_is_orthogonal_with_a_finite_gradient() -> None:
    student = torch.zeros(2, 3, requires_grad=True)
    value = loss((3,), (3,))(student, torch.eye(3)[:2])
    value.backward()
    assert value.item() == 1
    assert student.grad is not None
    assert student.grad.abs().max() <= 1


def test_other_rows_are_refused() -> None:
    with pytest.raises(UsageError, match=r"cosine: .* of the same rows"):
        loss((3,), (3,))(torch.ones(2, 3), torch.ones(1, 3))
