"""Several teachers as one: values by hand, what each mean is, confidence, and what is refused."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from objectives_reference import drawn, sparse

from kdcache.errors import UsageError
from kdcache.objectives import kd
from kdcache.objectives.ensemble import ensemble, ensemble_by_label

FIRST, SECOND = torch.tensor([[0.8, 0.2]]).log(), torch.tensor([[0.4, 0.6]]).log()
EVEN = torch.zeros(1, 2)


def against_even(p: float) -> float:
    """KL of (p, 1 - p) from (1/2, 1/2)."""
    return math.log(2) + p * math.log(p) + (1 - p) * math.log(1 - p)


def three(seed: int = 0) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    return tuple(2 * torch.randn(4, 6, generator=generator) for _ in range(4))


class TestEnsemble:
    def test_mean_of_probabilities_by_hand(self) -> None:
        assert ensemble(EVEN, FIRST, SECOND).item() == pytest.approx(against_even(0.6), rel=1e-5)
        assert ensemble(EVEN, FIRST, SECOND, weights=(3.0, 1.0)).item() == pytest.approx(against_even(0.7))
        assert ensemble(torch.tensor([[0.6, 0.4]]).log(), FIRST, SECOND).item() == pytest.approx(0, abs=1e-7)

    def test_mean_of_logits_by_hand(self) -> None:
        p = math.sqrt(0.8 * 0.4) / (math.sqrt(0.8 * 0.4) + math.sqrt(0.2 * 0.6))
        assert ensemble(EVEN, FIRST, SECOND, mean="logits").item() == pytest.approx(against_even(p), rel=1e-5)

    def test_a_mean_of_logits_does_not_see_a_teachers_shift(self) -> None:
        student, first, second, _ = three()
        shift = torch.tensor([[-3.0], [0.0], [1.0], [9.0]])
        plain = ensemble(student, first, second, mean="logits").item()
        assert ensemble(student, first + shift, second, mean="logits").item() == pytest.approx(plain, rel=1e-5)

    @pytest.mark.parametrize("mean", ["probabilities", "logits"])
    def test_teachers_that_agree_are_one(self, mean: Any) -> None:
        student, first, _, _ = three()
        value = ensemble(student, first, first, first, temperature=4.0, mean=mean, confidence="entropy")
        assert value.item() == pytest.approx(kd(student, first, temperature=4.0).item(), rel=1e-5)

    def test_a_weight_of_0_leaves_a_teacher_out(self) -> None:
        student, first, second, _ = three()
        for mean in ("probabilities", "logits"):
            value = ensemble(student, first, second, mean=mean, weights=(0.0, 2.0))  # type: ignore[arg-type]
            assert value.item() == pytest.approx(kd(student, second).item(), rel=1e-5)

    def test_its_gradient_is_that_of_one_kd_for_each(self) -> None:
        student, *teachers = three()
        slopes = []
        for way in range(2):
            leaf = student.clone().requires_grad_()
            if way:
                each = [kd(leaf, one, temperature=3.0) for one in teachers]
                (0.5 * each[0] + 0.3 * each[1] + 0.2 * each[2]).backward()
            else:
                ensemble(leaf, *teachers, temperature=3.0, weights=(5.0, 3.0, 2.0)).backward()
            assert leaf.grad is not None
            slopes.append(leaf.grad)
        torch.testing.assert_close(slopes[0], slopes[1], rtol=1e-5, atol=1e-6)

    def test_the_order_of_the_teachers_does_not_matter(self) -> None:
        student, first, second, third = three()
        one = ensemble(student, first, second, third, confidence="entropy")
        assert ensemble(student, third, first, second, confidence="entropy").item() == pytest.approx(one.item())

    def test_extreme_logits(self) -> None:
        student, *teachers = (1e4 * one for one in three())
        for options in ({}, {"mean": "logits"}, {"confidence": "entropy"}):
            leaf = student.clone().requires_grad_()
            value = ensemble(leaf, *teachers, **options)  # type: ignore[arg-type]
            value.backward()
            assert value.isfinite()
            assert leaf.grad is not None
            assert leaf.grad.isfinite().all()


class TestConfidence:
    def test_entropy_by_hand(self) -> None:
        """One teacher is certain, the other has no opinion: the first alone counts. Of two even ones, both."""
        certain = torch.tensor([[200.0, 0.0]])
        assert ensemble(EVEN, certain, EVEN, confidence="entropy").item() == pytest.approx(math.log(2))
        assert ensemble(EVEN, certain, -certain, confidence="entropy").item() == pytest.approx(0, abs=1e-7)

    def test_entropy_is_row_by_row_and_times_the_weights(self) -> None:
        entropies = [math.log(2) - against_even(p) for p in (0.8, 0.4)]
        sure = [1 - entropy / sum(entropies) for entropy in entropies]
        shares = [3 * sure[0], sure[1]]
        p = (shares[0] * 0.8 + shares[1] * 0.4) / sum(shares)
        found = ensemble(
            EVEN.repeat(2, 1), torch.cat([FIRST, EVEN]), torch.cat([SECOND, EVEN]), weights=(3, 1), confidence="entropy"
        )
        assert found.item() == pytest.approx(against_even(p) / 2)

    def test_label_by_hand(self) -> None:
        """exp of the cross-entropies with class 0 is 1.25 and 2.5: of K = 2, shares 2/3 and 1/3, p = 2/3."""
        value = ensemble_by_label(EVEN, FIRST, SECOND, torch.tensor([0]))
        assert value.item() == pytest.approx(against_even(2 / 3))

    def test_a_row_without_label_has_the_teachers_own_weights(self) -> None:
        value = ensemble_by_label(EVEN, FIRST, SECOND, torch.tensor([-1]), weights=(3.0, 1.0))
        assert value.item() == pytest.approx(against_even(0.7))

    def test_where_the_only_teacher_asked_is_wrong_it_is_still_asked(self) -> None:
        """Weights (1, 0), and the first gives the label nothing: its confidence is 0, and so is the other's weight."""
        wrong = torch.tensor([[0.0, 400.0]])
        value = ensemble_by_label(EVEN, wrong, FIRST, torch.tensor([0]), weights=(1.0, 0.0))
        assert value.item() == pytest.approx(math.log(2))


class TestRefused:
    def test_one_teacher(self) -> None:
        with pytest.raises(UsageError, match=r"ensemble: it is for several teachers and got 1: .* take kd"):
            ensemble(EVEN, FIRST)
        with pytest.raises(UsageError, match="ensemble_by_label: it is for several teachers and got 1"):
            ensemble_by_label(EVEN, FIRST, torch.tensor([0]))
        with pytest.raises(UsageError, match="the batch's `label` last"):
            ensemble_by_label(EVEN, FIRST)

    def test_no_label(self) -> None:
        with pytest.raises(UsageError, match=r"ensemble_by_label: labels are torch\.float32"):
            ensemble_by_label(EVEN, FIRST, SECOND)

    def test_sparse_and_drawn(self) -> None:
        with pytest.raises(UsageError, match=r"keep 1 of 2 classes .* take one kd for each teacher's field"):
            ensemble(EVEN, FIRST, sparse(SECOND.numpy(), 1))
        with pytest.raises(UsageError, match="random draws"):
            ensemble(EVEN, drawn(FIRST.numpy(), 1.0, 5, np.random.default_rng(0))[0], SECOND)

    @pytest.mark.parametrize("weights", [(1.0,), (1.0, -1.0), (0.0, 0.0), (1.0, math.inf), (math.nan, 1.0)])
    def test_weights(self, weights: tuple[float, ...]) -> None:
        with pytest.raises(UsageError, match=r"weights .*(give one for each|finite, 0 or above)"):
            ensemble(EVEN, FIRST, SECOND, weights=weights)

    def test_names(self) -> None:
        unknown: Any = "median"
        with pytest.raises(UsageError, match="mean = 'median'; it is one of probabilities, logits"):
            ensemble(EVEN, FIRST, SECOND, mean=unknown)
        with pytest.raises(UsageError, match="confidence = 'median'; it is one of none, entropy"):
            ensemble(EVEN, FIRST, SECOND, confidence=unknown)

    def test_other_classes(self) -> None:
        with pytest.raises(UsageError, match="set the student's number of outputs to 3"):
            ensemble(EVEN, FIRST, torch.zeros(1, 3))
