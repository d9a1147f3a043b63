"""`mse_logits` on every kind of targets, against float64 and by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from objectives_reference import agrees, drawn, padded, pairs, quantised, sparse, sweep

from kdcache.codecs import SparseLogits
from kdcache.errors import UsageError
from kdcache.objectives import mse_logits


def over_kept(student: np.ndarray, teacher: np.ndarray, targets: SparseLogits) -> float:
    rows = []
    for s, t, indices, log_p in zip(student, teacher, targets.indices.numpy(), targets.log_p.numpy(), strict=True):
        kept = indices[np.isfinite(log_p)]
        difference = (s[kept] - s[kept].mean()) - (t[kept] - t[kept].mean())
        rows.append(math.fsum(difference**2) / len(kept))
    return math.fsum(rows) / len(rows)


class TestReference:
    @given(pairs(), st.booleans())
    @sweep
    def test_dense_and_quantised(self, pair: tuple[np.ndarray, np.ndarray], centred: bool) -> None:
        student, teacher = pair
        codes, stands_for = quantised(teacher)

        def reference(s: np.ndarray, t: np.ndarray) -> float:
            less = (lambda x: x - x.mean(1, keepdims=True)) if centred else (lambda x: x)
            return float(np.mean((less(s) - less(t)) ** 2))

        dense = torch.tensor(teacher, dtype=torch.float32)
        agrees(lambda s: mse_logits(s, dense, centred=centred), lambda s: reference(s, teacher), student)
        agrees(lambda s: mse_logits(s, codes, centred=centred), lambda s: reference(s, stands_for), student)

    @given(pairs(), st.data())
    @sweep
    def test_kept_classes(self, pair: tuple[np.ndarray, np.ndarray], data: st.DataObject) -> None:
        student, teacher = pair
        targets = sparse(teacher, data.draw(st.integers(2, teacher.shape[1])))
        agrees(lambda s: mse_logits(s, targets), lambda s: over_kept(s, teacher, targets), student)

    @given(pairs(), st.data())
    @sweep
    def test_padding_adds_nothing(self, pair: tuple[np.ndarray, np.ndarray], data: st.DataObject) -> None:
        student, teacher = (np.concatenate([x, x[:, :1] / 2], axis=1) for x in pair)
        slots = data.draw(st.integers(2, teacher.shape[1] - 1))
        kept = data.draw(st.lists(st.integers(1, slots), min_size=len(teacher), max_size=len(teacher)))
        targets = padded(teacher, kept, slots)
        agrees(lambda s: mse_logits(s, targets), lambda s: over_kept(s, teacher, targets), student)


def test_kept_classes_by_hand() -> None:
    """Kept: classes 2 and 0, teacher's logits 3 and 1, student's 1 and 0; less their means ±1 and ±1/2."""
    targets = sparse(np.array([[1.0, -2.0, 3.0]]), 2)
    student = torch.tensor([[0.0, 9.0, 1.0]], requires_grad=True)
    value = mse_logits(student, targets)
    value.backward()
    assert value.item() == pytest.approx(0.25)
    torch.testing.assert_close(student.grad, torch.tensor([[0.5, 0.0, -0.5]]))


def test_all_classes_kept_is_centred() -> None:
    random = np.random.default_rng(1)
    student, teacher = torch.tensor(random.normal(size=(3, 5)), dtype=torch.float32), random.normal(size=(3, 5))
    dense = mse_logits(student, torch.tensor(teacher), centred=True).item()
    assert mse_logits(student, sparse(teacher, 5)).item() == pytest.approx(dense, rel=1e-5)


def test_one_kept_class_is_refused() -> None:
    with pytest.raises(UsageError, match=r"of 1 kept class nothing is left: .*k = 2 or more"):
        mse_logits(torch.zeros(2, 4), sparse(np.eye(2, 4), 1))


def test_draws_are_refused() -> None:
    with pytest.raises(UsageError, match="mse_logits: it compares logits, and these targets are random draws"):
        mse_logits(torch.zeros(2, 4), drawn(np.eye(2, 4), 1.0, 5, np.random.default_rng(0))[0])
