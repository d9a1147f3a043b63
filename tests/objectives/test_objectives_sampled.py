"""Losses on draws from the teacher: float64, unbiased gradients, the one temperature that they serve."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from objectives_reference import agrees, cross, divergence, drawn, pairs, softmax, sweep, temperatures

from kdcache.codecs import SampledLogits
from kdcache.errors import UsageError
from kdcache.objectives import hard_label, kd, soft_ce


class TestReference:
    @given(pairs(), temperatures, st.integers(1, 12), st.integers(0, 99))
    @sweep
    def test_kd_and_soft_ce(self, pair: tuple[np.ndarray, np.ndarray], t: float, draws: int, seed: int) -> None:
        student, teacher = pair
        targets, weights = drawn(teacher, t, draws, np.random.default_rng(seed))
        agrees(
            lambda s: soft_ce(s, targets, temperature=t), lambda s: t * t * cross(weights, softmax(s / t)), student, t
        )
        agrees(
            lambda s: kd(s, targets, temperature=t), lambda s: t * t * divergence(weights, softmax(s / t)), student, t
        )

    @given(pairs(), temperatures, st.integers(0, 99))
    @sweep
    def test_gradient_is_stated(self, pair: tuple[np.ndarray, np.ndarray], t: float, seed: int) -> None:
        student, teacher = pair
        targets, weights = drawn(teacher, t, 9, np.random.default_rng(seed))
        for loss in (kd, soft_ce):
            ours = torch.tensor(student, requires_grad=True)
            loss(ours, targets, temperature=t).backward()
            assert ours.grad is not None
            np.testing.assert_allclose(ours.grad, t * (softmax(student / t) - weights) / len(student), atol=1e-6 * t)

    @given(pairs(), st.integers(0, 99))
    @sweep
    def test_hard_label_is_of_the_largest_weight(self, pair: tuple[np.ndarray, np.ndarray], seed: int) -> None:
        student, teacher = pair
        targets, weights = drawn(teacher, 1.0, 7, np.random.default_rng(seed))
        # Of several largest the first slot counts, so we only ask that it is one of them.
        found = torch.tensor(student, requires_grad=True)
        hard_label(found, targets).backward()
        assert found.grad is not None
        taken = found.grad.numpy().argmin(1)
        assert (weights[np.arange(len(weights)), taken] == weights.max(1)).all()


def test_by_hand() -> None:
    """w = (3/4, 1/4, 0), q = (1/4, 1/4, 1/2); the slots hold class 1, padding that repeats it, and class 0."""
    targets = SampledLogits(torch.tensor([[1, 1, 0]]), torch.tensor([[0.25, 0.0, 0.75]]), 2.0, 3)
    student = 2 * torch.log(torch.tensor([[0.25, 0.25, 0.5]]))
    ours = student.requires_grad_()
    value = soft_ce(ours, targets, temperature=2.0)
    assert value.item() == pytest.approx(4 * math.log(4))
    value.backward()
    torch.testing.assert_close(ours.grad, 2 * torch.tensor([[-0.5, 0.0, 0.5]]))
    entropy = 0.75 * math.log(4 / 3) + 0.25 * math.log(4)
    assert kd(student, targets, temperature=2.0).item() == pytest.approx(4 * (math.log(4) - entropy))
    assert hard_label(student, targets).item() == pytest.approx(-2 * math.log(0.25) + math.log(2 / 16 + 1 / 4))


def test_gradient_of_many_draws_has_no_bias() -> None:
    """The mean over 20,000 rows of draws from one teacher, against the dense gradient, within 5 standard errors."""
    random = np.random.default_rng(7)
    rows, draws, t = 20_000, 5, 2.0
    student, teacher = random.normal(0, 2, (2, 1, 6))
    targets, _ = drawn(np.repeat(teacher, rows, 0), t, draws, random)
    ours = torch.tensor(np.repeat(student, rows, 0), requires_grad=True)
    (kd(ours, targets, temperature=t) * rows).backward()
    assert ours.grad is not None
    p = softmax(teacher / t)
    bound = 5 * t * np.sqrt(p * (1 - p) / draws / rows)
    assert (abs(ours.grad.numpy().mean(0) - t * (softmax(student / t) - p)) < bound).all()
    assert ours.grad.numpy().std(0).min() > 0.05  # it is no constant


def test_padding_of_a_class_that_counts_elsewhere_does_not_hide_another() -> None:
    """A padded slot may name a class without weight: that class stays in the student's partition."""
    student = torch.tensor([[1.0, -2.0, 3.0]])
    with_pad = SampledLogits(torch.tensor([[0, 2]]), torch.tensor([[1.0, 0.0]]), 1.0, 3)
    without = SampledLogits(torch.tensor([[0]]), torch.tensor([[1.0]]), 1.0, 3)
    assert kd(student, with_pad).item() == pytest.approx(kd(student, without).item())


@pytest.mark.parametrize("loss", [kd, soft_ce])
def test_another_temperature_is_refused(loss: object) -> None:
    assert callable(loss)
    targets = SampledLogits(torch.tensor([[0]]), torch.tensor([[1.0]]), 2.0, 3)
    with pytest.raises(UsageError, match=r"temperature = 1: .* at T = 2 and serve .*set temperature = 2, or dump"):
        loss(torch.zeros(1, 3), targets)
    with pytest.raises(UsageError, match="a finite number above 0"):
        loss(torch.zeros(1, 3), targets, temperature=math.nan)
