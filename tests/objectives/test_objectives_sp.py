"""Similarity-preserving and probabilistic transfer by hand."""

from __future__ import annotations

import math

import pytest
import torch

from kdcache.objectives.pkt import pkt
from kdcache.objectives.sp import sp


def test_sp_by_hand() -> None:
    """G is the identity, against (1, 1) / sqrt 2 in both rows."""
    half = math.sqrt(0.5)
    found = sp(torch.tensor([[2.0, 0.0], [0.0, 2.0]]), torch.tensor([[3.0], [3.0]]))
    assert found.item() == pytest.approx(2 * ((1 - half) ** 2 + half**2) / 4)


def test_sp_minds_how_long_rows_are() -> None:
    """Products 1 and 2, 2 and 4: rows (1, 2) / sqrt 5 against (1, 1) / sqrt 2."""
    found = sp(torch.tensor([[1.0], [2.0]]), torch.tensor([[1.0], [1.0]]))
    half, fifth = math.sqrt(0.5), math.sqrt(0.2)
    assert found.item() == pytest.approx(2 * ((fifth - half) ** 2 + (2 * fifth - half) ** 2) / 4)


def test_pkt_by_hand() -> None:
    """Neighbours 2/3 and 1/3 (K = 1 and 1/2) where the teacher has 1 and 0 (K = 1 and 0)."""
    found = pkt(torch.tensor([[2.0, 0.0], [0.0, 1.0]]), torch.tensor([[1.0], [-4.0]]))
    assert found.item() == pytest.approx(2 * math.log(3 / 2) / 4, rel=1e-5)


def test_pkt_of_rows_opposite_in_the_student_is_finite() -> None:
    """Probability 0 where the teacher has 1/3: the 1e-7 in the logarithm."""
    student = torch.tensor([[1.0], [-4.0]], requires_grad=True)
    found = pkt(student, torch.tensor([[2.0, 0.0], [0.0, 1.0]]))
    expected = 2 * (2 / 3 * math.log(2 / 3) + 1 / 3 * math.log((1 / 3 + 1e-7) / 1e-7)) / 4
    assert found.item() == pytest.approx(expected, rel=1e-5)
    found.backward()
    assert student.grad is not None
    assert student.grad.isfinite().all()
