"""Neuron selectivity transfer."""

from __future__ import annotations

import pytest
import torch

from kdcache.errors import UsageError
from kdcache.objectives.nst import nst

STUDENT, TEACHER = torch.tensor([[[[3.0, 4.0]]]]), torch.tensor([[[[1.0, 0.0]]]])


@pytest.mark.parametrize(("ours", "theirs"), [(1, 1), (3, 2), (40, 9)])
def test_by_hand_over_channels_and_over_positions(ours: int, theirs: int) -> None:
    """k(s, s) = k(t, t) = 1 and k(s, t) = 0.6^2; channels that are there twice change no mean."""
    value = nst(STUDENT.repeat(1, ours, 1, 1), TEACHER.repeat(1, theirs, 1, 1))
    assert value.item() == pytest.approx(2 - 2 * 0.36)


@pytest.mark.parametrize("channels", [2, 40])
def test_what_does_not_matter(channels: int) -> None:
    student, teacher = torch.randn(3, channels, 4, 4), torch.randn(3, 7, 4, 4)
    value = nst(student, teacher)
    assert value > 0
    scale = torch.rand(1, channels, 1, 1) + 0.5
    torch.testing.assert_close(nst(1e-5 * scale * student, teacher), value)
    torch.testing.assert_close(nst(student.flip(1), -teacher), value)
    torch.testing.assert_close(nst(student.flip(2), teacher.flip(2)), value)
    assert nst(student, student.flip(1)).item() == pytest.approx(0, abs=1e-6)


def test_a_dead_channel_has_a_finite_gradient() -> None:
    student = torch.randn(2, 3, 2, 2)
    student[:, 1] = 0
    student.requires_grad_()
    nst(student, torch.randn(2, 4, 2, 2)).backward()
    assert student.grad is not None
    assert student.grad.isfinite().all()
    assert not student.grad[:, 1].any()


@pytest.mark.parametrize(
    ("student", "teacher"), [((2, 3), (2, 3)), ((2, 3, 4, 4), (1, 3, 4, 4)), ((2, 3, 4, 4), (2, 4, 4))]
)
def test_what_is_refused(student: tuple[int, ...], teacher: tuple[int, ...]) -> None:
    with pytest.raises(UsageError, match="of the same rows"):
        nst(torch.ones(student), torch.ones(teacher))
