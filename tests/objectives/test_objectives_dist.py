"""DIST: values by hand, what does not matter to it, and what it refuses."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from objectives_reference import drawn, quantised, sparse
from torch import Tensor

from kdcache.errors import UsageError
from kdcache.objectives.dist import dist

STUDENT = torch.tensor([[0.5, 0.3, 0.2], [0.2, 0.5, 0.3]]).log()
TEACHER = torch.tensor([[0.6, 0.3, 0.1], [0.1, 0.3, 0.6]]).log()
INTER = 1 - (69 + 15) / 2 / math.sqrt(42 * 114)  # rows less 1/3: (5, -1, -4) and (8, -1, -7); (-4, 5, -1), (-7, -1, 8)
INTRA = 1 - (1 + 0 + 1) / 3  # of two numbers r is 1, -1, or not defined: the teacher's 0.3 and 0.3


def batch(seed: int = 0, rows: int = 6, classes: int = 5) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, classes, generator=generator), torch.randn(rows, classes, generator=generator)


class TestDist:
    def test_by_hand(self) -> None:
        assert dist(STUDENT, TEACHER).item() == pytest.approx(INTER + INTRA, rel=1e-5)
        assert dist(STUDENT, TEACHER, beta=2.0, gamma=0.0).item() == pytest.approx(2 * INTER, rel=1e-5)
        assert dist(STUDENT, TEACHER, beta=0.0, gamma=3.0).item() == pytest.approx(3 * INTRA, rel=1e-5)

    def test_temperature(self) -> None:
        warm = dist(4 * STUDENT, 4 * TEACHER, temperature=4.0)
        assert warm.item() == pytest.approx(16 * (INTER + INTRA), rel=1e-5)

    def test_nothing_is_left_where_they_agree(self) -> None:
        student, _ = batch()
        assert dist(student, student + 7).item() == pytest.approx(0, abs=1e-6)

    def test_rows_need_only_correlate(self) -> None:
        """q an affine function of p along every row: the inter-class part is 0 though the KL is not."""
        _, teacher = batch()
        student = (0.4 * teacher.softmax(1) + 0.6 / 5).log()
        assert dist(student, teacher, gamma=0.0).item() == pytest.approx(0, abs=1e-6)

    def test_a_class_of_small_probabilities_counts_as_the_others(self) -> None:
        """Its column is 1e-24 of the others'. Both sides have the same ones, and the student's fall where the teacher's
        rise in the last column alone."""
        student, teacher = torch.zeros(2, 3), torch.zeros(2, 3)
        student[:, 2], teacher[:, 2] = torch.tensor([-55.0, -56.0]), torch.tensor([-56.0, -55.0])
        value = dist(student.requires_grad_(), teacher, beta=0.0)
        assert value.item() == pytest.approx(1 - (0 + 0 - 1) / 3, rel=1e-5)

    @pytest.mark.parametrize("logit", [0.0, 300.0])
    def test_an_undecided_student_or_teacher_gets_no_huge_gradient(self, logit: float) -> None:
        """Softmax of a constant row is 1/C but for rounding, and dividing by that would be a gradient of 1e7."""
        flat, other = torch.full((4, 7), logit, requires_grad=True), batch(rows=4, classes=7)[0].requires_grad_()
        value = dist(flat, other.detach())
        value.backward()
        assert value.item() == pytest.approx(2)
        assert flat.grad is not None
        assert not flat.grad.any()
        dist(other, flat.detach()).backward()
        assert other.grad is not None
        assert not other.grad.any()

    def test_extreme_logits(self) -> None:
        student = (1e4 * batch()[0]).requires_grad_()
        value = dist(student, 1e4 * batch()[1])
        value.backward()
        assert value.isfinite()
        assert student.grad is not None
        assert student.grad.isfinite().all()

    def test_quantised_is_what_it_stands_for(self) -> None:
        student, teacher = batch()
        targets, stands_for = quantised(teacher.double().numpy())
        dense = torch.from_numpy(stands_for).float()
        assert dist(student, targets).item() == pytest.approx(dist(student, dense).item(), rel=1e-5)


class TestRefused:
    def test_one_row(self) -> None:
        with pytest.raises(UsageError, match=r"dist: .* at least two rows, and this batch has 1: raise"):
            dist(STUDENT[:1], TEACHER[:1])

    def test_sparse_and_drawn(self) -> None:
        with pytest.raises(UsageError, match=r'dist: .* keep 1 of 3 classes .* take kd, or dump .* codec = "dense"'):
            dist(STUDENT, sparse(TEACHER.numpy(), 1))
        with pytest.raises(UsageError, match=r"dist: .* random draws"):
            dist(STUDENT, drawn(TEACHER.numpy(), 1.0, 5, np.random.default_rng(0))[0])

    @pytest.mark.parametrize("option", [{"beta": -1.0}, {"gamma": math.inf}, {"beta": math.nan}])
    def test_weights(self, option: dict[str, float]) -> None:
        with pytest.raises(UsageError, match=r"dist: (beta|gamma) = .* a finite number, 0 or above"):
            dist(STUDENT, TEACHER, **option)

    def test_shapes(self) -> None:
        with pytest.raises(UsageError, match="set the student's number of outputs to 3"):
            dist(torch.zeros(2, 4), TEACHER)
