"""Distillation on standardised logits: values by hand, what does not matter to it, and what it refuses."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from objectives_reference import drawn, sparse

from kdcache.errors import UsageError
from kdcache.objectives import kd
from kdcache.objectives.standardised import logit_standardised_kd

STUDENT = torch.randn(5, 9, generator=torch.Generator().manual_seed(0))
TEACHER = torch.randn(5, 9, generator=torch.Generator().manual_seed(1))


class TestLogitStandardisedKd:
    def test_by_hand(self) -> None:
        """Of two logits Z is (1, -1) or (-1, 1): at T = 2 the KL is (2 s - 1) 1, s = sigmoid(1)."""
        value = logit_standardised_kd(torch.tensor([[0.0, 3.0]]), torch.tensor([[5.0, 1.0]]))
        assert value.item() == pytest.approx(4 * math.tanh(0.5))

    def test_scale_and_shift_of_a_row_do_not_matter(self) -> None:
        scale, shift = torch.tensor([[0.1], [1.0], [2.0], [10.0], [50.0]]), torch.arange(5.0)[:, None]
        value = logit_standardised_kd(STUDENT, TEACHER).item()
        assert logit_standardised_kd(scale * STUDENT + shift, TEACHER).item() == pytest.approx(value, rel=1e-4)
        assert logit_standardised_kd(STUDENT, scale * TEACHER - shift).item() == pytest.approx(value, rel=1e-4)
        assert logit_standardised_kd(scale * TEACHER + shift, TEACHER).item() == pytest.approx(0, abs=1e-5)

    def test_so_the_gradient_is_across_both(self) -> None:
        student = STUDENT.clone().requires_grad_()
        logit_standardised_kd(student, TEACHER).backward()
        assert student.grad is not None
        assert student.grad.norm() > 0.1
        torch.testing.assert_close(student.grad.sum(1), torch.zeros(5), atol=1e-6, rtol=0)
        torch.testing.assert_close((student.grad * STUDENT).sum(1), torch.zeros(5), atol=1e-6, rtol=0)

    def test_with_the_deviation_of_the_authors_code(self) -> None:
        """torch's deviation divides by C - 1 and is larger for it; the temperature makes up for that, and T^2 too."""
        ours, theirs = ((z - z.mean(1, keepdim=True)) / z.std(1, keepdim=True) for z in (STUDENT, TEACHER))
        there = kd(ours, theirs, temperature=3.0).item()
        ratio = math.sqrt(9 / 8)
        here = logit_standardised_kd(STUDENT, TEACHER, temperature=3.0 * ratio).item()
        assert here / ratio**2 == pytest.approx(there, rel=1e-5)

    @pytest.mark.parametrize("logit", [0.0, 1e4])
    def test_an_undecided_row_becomes_zeros(self, logit: float) -> None:
        flat = torch.full((1, 9), logit, requires_grad=True)
        value = logit_standardised_kd(flat, TEACHER[:1])
        value.backward()
        centred = TEACHER[:1] - TEACHER[:1].mean()
        teacher = centred / centred.square().mean().sqrt()
        assert value.item() == pytest.approx(kd(torch.zeros(1, 9), teacher, temperature=2.0).item())
        assert flat.grad is not None
        assert not flat.grad.any()

    def test_refused(self) -> None:
        with pytest.raises(UsageError, match=r"deviation .* keep 2 of 9 classes .* take kd"):
            logit_standardised_kd(STUDENT, sparse(TEACHER.numpy(), 2))
        with pytest.raises(UsageError, match="random draws"):
            logit_standardised_kd(STUDENT, drawn(TEACHER.numpy(), 2.0, 5, np.random.default_rng(0))[0])
        with pytest.raises(UsageError, match="temperature = 0"):
            logit_standardised_kd(STUDENT, TEACHER, temperature=0.0)
