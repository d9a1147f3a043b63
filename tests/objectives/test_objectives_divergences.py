"""Reverse KL and the generalised Jensen-Shannon divergence: float64, by hand, limits, and what T^2 multiplies."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from objectives_reference import (
    agrees,
    bucketed,
    bucketed_student,
    divergence,
    drawn,
    jensen_shannon,
    padded,
    pairs,
    quantised,
    softmax,
    sparse,
    sweep,
    temperatures,
)

from kdcache.errors import UsageError
from kdcache.objectives import jsd, kd, reverse_kl
from kdcache.objectives.divergences import skew_kl

betas = st.sampled_from([0.1, 0.5, 0.9])


class TestReference:
    @given(pairs(), temperatures, betas)
    @sweep
    def test_dense(self, pair: tuple[np.ndarray, np.ndarray], t: float, beta: float) -> None:
        student, teacher = pair
        dense, p = torch.tensor(teacher, dtype=torch.float32), softmax(teacher / t)
        agrees(
            lambda s: reverse_kl(s, dense, temperature=t), lambda s: t * t * divergence(softmax(s / t), p), student, t
        )
        agrees(
            lambda s: jsd(s, dense, temperature=t, beta=beta),
            lambda s: t * t * jensen_shannon(p, softmax(s / t), beta),
            student,
            t,
        )

    @given(pairs(), temperatures)
    @sweep
    def test_quantised(self, pair: tuple[np.ndarray, np.ndarray], t: float) -> None:
        student, (codes, teacher) = pair[0], quantised(pair[1])
        p = softmax(teacher / t)
        agrees(
            lambda s: reverse_kl(s, codes, temperature=t), lambda s: t * t * divergence(softmax(s / t), p), student, t
        )
        agrees(
            lambda s: jsd(s, codes, temperature=t), lambda s: t * t * jensen_shannon(p, softmax(s / t), 0.5), student, t
        )

    @given(pairs(), temperatures, betas, st.data())
    @sweep
    def test_sparse_and_padded(
        self, pair: tuple[np.ndarray, np.ndarray], t: float, beta: float, data: st.DataObject
    ) -> None:
        student, teacher = pair
        slots = data.draw(st.integers(1, teacher.shape[1] - 1))
        kept = data.draw(st.lists(st.integers(1, slots), min_size=len(teacher), max_size=len(teacher)))
        for targets in (sparse(teacher, slots), padded(teacher, kept, slots)):
            p = bucketed(targets, t)
            agrees(
                lambda s, p=p, x=targets: reverse_kl(s, x, temperature=t),  # type: ignore[misc]
                lambda s, p=p, x=targets: t * t * divergence(bucketed_student(s, x, t), p),  # type: ignore[misc]
                student,
                t,
            )
            agrees(
                lambda s, p=p, x=targets: jsd(s, x, temperature=t, beta=beta),  # type: ignore[misc]
                lambda s, p=p, x=targets: t * t * jensen_shannon(p, bucketed_student(s, x, t), beta),  # type: ignore[misc]
                student,
                t,
            )


class TestByHand:
    """q = (1/4, 3/4), p = (1/2, 1/2); m = (3/8, 5/8)."""

    student, teacher = torch.tensor([[0.0, math.log(3)]]), torch.tensor([[5.0, 5.0]])
    reverse = 0.25 * math.log(0.5) + 0.75 * math.log(1.5)
    half = 0.5 * (0.5 * math.log(4 / 3) + 0.5 * math.log(0.8)) + 0.5 * (0.25 * math.log(2 / 3) + 0.75 * math.log(1.2))

    def test_reverse_kl(self) -> None:
        assert reverse_kl(self.student, self.teacher).item() == pytest.approx(self.reverse)
        assert reverse_kl(2 * self.student, self.teacher, temperature=2).item() == pytest.approx(4 * self.reverse)

    def test_jsd(self) -> None:
        assert jsd(self.student, self.teacher).item() == pytest.approx(self.half)
        assert jsd(2 * self.student, self.teacher, temperature=2).item() == pytest.approx(4 * self.half)

    def test_they_are_means_over_rows(self) -> None:
        student, teacher = torch.cat([self.student, torch.zeros(1, 2)]), self.teacher.repeat(2, 1)
        assert reverse_kl(student, teacher).item() == pytest.approx(self.reverse / 2)
        assert jsd(student, teacher).item() == pytest.approx(self.half / 2)


class TestJsd:
    student = torch.randn(5, 9, generator=torch.Generator().manual_seed(0))
    teacher = torch.randn(5, 9, generator=torch.Generator().manual_seed(1))

    def test_ends_are_the_two_kls(self) -> None:
        student, teacher = self.student.double(), self.teacher.double()
        forward, reverse = kd(student, teacher).item(), reverse_kl(student, teacher).item()
        assert jsd(student, teacher, beta=1e-7).item() / 1e-7 == pytest.approx(forward, rel=1e-4)
        assert jsd(student, teacher, beta=1 - 1e-7).item() / 1e-7 == pytest.approx(reverse, rel=1e-4)

    def test_symmetric_and_bounded(self) -> None:
        assert jsd(self.student, self.teacher).item() == pytest.approx(jsd(self.teacher, self.student).item())
        apart = jsd(torch.tensor([[900.0, 0.0]]), torch.tensor([[0.0, 900.0]]))
        assert apart.item() == pytest.approx(math.log(2))

    @pytest.mark.parametrize("beta", [0.0, 1.0, -0.5, math.nan])
    def test_beta(self, beta: float) -> None:
        with pytest.raises(UsageError, match=r"above 0 and below 1; for the ends take kd .* or reverse_kl"):
            jsd(self.student, self.teacher, beta=beta)


class TestSkewKl:
    student, teacher = TestJsd.student, TestJsd.teacher

    def test_by_hand(self) -> None:
        """p = (0.9, 0.1), q = (0.5, 0.5), alpha = 0.25: m = (0.6, 0.4)."""
        value = skew_kl(torch.zeros(1, 2), torch.tensor([[0.9, 0.1]]).log(), alpha=0.25)
        assert value.item() == pytest.approx(0.9 * math.log(1.5) + 0.1 * math.log(0.25))

    def test_it_is_the_forward_one(self) -> None:
        student, teacher = self.student.double(), self.teacher.double()
        assert skew_kl(student, teacher, alpha=1e-9).item() == pytest.approx(kd(student, teacher).item())
        half = skew_kl(student, teacher, alpha=0.5) + skew_kl(teacher, student, alpha=0.5)
        assert half.item() / 2 == pytest.approx(jsd(student, teacher).item())

    def test_temperature_scales_value_and_gradient_as_in_kd(self) -> None:
        warm = skew_kl(2 * self.student, 2 * self.teacher, temperature=2.0)
        assert warm.item() == pytest.approx(4 * skew_kl(self.student, self.teacher).item(), rel=1e-5)

    def test_bounded_where_the_student_has_nothing(self) -> None:
        student = torch.tensor([[900.0, 0.0]], requires_grad=True)
        value = skew_kl(student, torch.tensor([[0.0, 900.0]]), alpha=0.1)
        value.backward()
        assert value.item() == pytest.approx(-math.log(0.1))
        assert student.grad is not None
        assert student.grad.isfinite().all()

    def test_a_class_that_the_teacher_rules_out(self) -> None:
        student = torch.zeros(1, 3, requires_grad=True)
        value = skew_kl(student, torch.tensor([[0.0, 0.0, -math.inf]]), alpha=0.5)
        value.backward()
        assert value.item() == pytest.approx(math.log(0.5 / (0.25 + 1 / 6)))
        assert student.grad is not None
        assert student.grad.isfinite().all()

    @pytest.mark.parametrize("alpha", [0.0, 1.0, -0.5, math.nan])
    def test_alpha(self, alpha: float) -> None:
        with pytest.raises(UsageError, match=r"skew_kl: alpha = .* above 0 and below 1; for alpha -> 0 take kd"):
            skew_kl(self.student, self.teacher, alpha=alpha)


@pytest.mark.parametrize("loss", [reverse_kl, jsd, skew_kl])
def test_draws_are_refused(loss: object) -> None:
    assert callable(loss)
    with pytest.raises(UsageError, match=r"random draws, unbiased only .* take kd or soft_ce"):
        loss(torch.zeros(2, 4), drawn(np.eye(2, 4), 1.0, 5, np.random.default_rng(0))[0])
