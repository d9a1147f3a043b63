"""Losses on logits against an independent float64 reference, values and gradients."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from objectives_reference import Reference, bucketed, bucketed_student, cross, divergence, slopes, softmax, sparse
from torch import Tensor

from kdcache.objectives import ce, hard_label, kd, mse_logits, soft_ce


def agrees(loss: Callable[[Tensor], Tensor], reference: Reference, student: np.ndarray, temperature: float = 1) -> None:
    """Value and gradient, within float32's rounding, which T^2 multiplies."""
    ours = torch.tensor(student, dtype=torch.float32, requires_grad=True)
    value = loss(ours)
    assert value.shape == ()
    assert value.dtype == torch.float32
    value.backward()
    assert ours.grad is not None
    assert value.item() == pytest.approx(reference(student), rel=2e-5, abs=1e-6 * temperature**2)
    np.testing.assert_allclose(ours.grad.numpy(), slopes(reference, student), rtol=2e-4, atol=2e-5)


@st.composite
def pairs(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    """Student and teacher logits [B, C] that float32 holds exactly."""
    rows, classes = draw(st.integers(1, 4)), draw(st.integers(2, 7))
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    scale = draw(st.sampled_from([0.1, 1.0, 6.0]))
    student, teacher = random.normal(0, scale, (2, rows, classes)).astype(np.float32).astype(np.float64)
    return student, teacher


temperatures = st.sampled_from([1.0, 1.5, 2.0, 4.0, 20.0])
sweep = settings(max_examples=25, deadline=None)


class TestReference:
    @given(pairs(), temperatures)
    @sweep
    def test_kd_dense(self, pair: tuple[np.ndarray, np.ndarray], t: float) -> None:
        student, teacher = pair
        p, ours = softmax(teacher / t), torch.tensor(teacher, dtype=torch.float32)
        agrees(lambda s: kd(s, ours, temperature=t), lambda s: t * t * divergence(p, softmax(s / t)), student, t)

    @given(pairs(), temperatures)
    @sweep
    def test_kd_gradient_is_stated(self, pair: tuple[np.ndarray, np.ndarray], t: float) -> None:
        student, teacher = pair
        ours = torch.tensor(student, dtype=torch.float32, requires_grad=True)
        kd(ours, torch.tensor(teacher, dtype=torch.float32), temperature=t).backward()
        assert ours.grad is not None
        expected = t * (softmax(student / t) - softmax(teacher / t)) / len(student)
        np.testing.assert_allclose(ours.grad.numpy(), expected, rtol=1e-4, atol=2e-6 * t)

    @given(pairs(), temperatures, st.data())
    @sweep
    def test_kd_sparse(self, pair: tuple[np.ndarray, np.ndarray], t: float, data: st.DataObject) -> None:
        student, teacher = pair
        targets = sparse(teacher, data.draw(st.integers(1, teacher.shape[1] - 1)))
        p = bucketed(targets, t)
        agrees(
            lambda s: kd(s, targets, temperature=t),
            lambda s: t * t * divergence(p, bucketed_student(s, targets, t)),
            student,
            t,
        )

    @given(pairs(), temperatures, st.data())
    @sweep
    def test_soft_ce(self, pair: tuple[np.ndarray, np.ndarray], t: float, data: st.DataObject) -> None:
        student, teacher = pair
        dense = torch.tensor(teacher, dtype=torch.float32)
        agrees(
            lambda s: soft_ce(s, dense, temperature=t),
            lambda s: t * t * cross(softmax(teacher / t), softmax(s / t)),
            student,
            t,
        )
        targets = sparse(teacher, data.draw(st.integers(1, teacher.shape[1] - 1)))
        agrees(
            lambda s: soft_ce(s, targets, temperature=t),
            lambda s: t * t * cross(bucketed(targets, t), bucketed_student(s, targets, t)),
            student,
            t,
        )

    @given(pairs(), st.data())
    @sweep
    def test_ce_and_hard_label(self, pair: tuple[np.ndarray, np.ndarray], data: st.DataObject) -> None:
        student, teacher = pair
        rows, classes = student.shape
        label = np.array(data.draw(st.lists(st.integers(-1, classes - 1), min_size=rows, max_size=rows)))

        def reference(s: np.ndarray, of: np.ndarray) -> float:
            taken = [-math.log(row[c]) for row, c in zip(softmax(s), of, strict=True) if c >= 0]
            return math.fsum(taken) / max(len(taken), 1)

        agrees(lambda s: ce(s, torch.from_numpy(label)), lambda s: reference(s, label), student)
        best = teacher.argmax(1)
        for targets in (torch.tensor(teacher), sparse(teacher, 1)):
            agrees(lambda s, t=targets: hard_label(s, t), lambda s: reference(s, best), student)  # type: ignore[misc]

    @given(pairs(), st.booleans())
    @sweep
    def test_mse_logits(self, pair: tuple[np.ndarray, np.ndarray], centred: bool) -> None:
        student, teacher = pair

        def reference(s: np.ndarray) -> float:
            less = (lambda x: x - x.mean(1, keepdims=True)) if centred else (lambda x: x)
            return float(np.mean((less(s) - less(teacher)) ** 2))

        dense = torch.tensor(teacher, dtype=torch.float32)
        agrees(lambda s: mse_logits(s, dense, centred=centred), reference, student)

    @given(pairs(), temperatures)
    @sweep
    def test_all_classes_kept_is_dense(self, pair: tuple[np.ndarray, np.ndarray], t: float) -> None:
        student, teacher = pair
        full, dense = sparse(teacher, teacher.shape[1]), torch.tensor(teacher, dtype=torch.float32)
        for loss in (kd, soft_ce):
            found = []
            for targets in (full, dense):
                ours = torch.tensor(student, dtype=torch.float32, requires_grad=True)
                value = loss(ours, targets, temperature=t)
                value.backward()
                assert ours.grad is not None
                found.append((value.item(), ours.grad))
            assert found[0][0] == pytest.approx(found[1][0], rel=2e-5, abs=1e-6 * t**2)
            torch.testing.assert_close(found[0][1], found[1][1], rtol=1e-4, atol=2e-6 * t)

    @given(pairs())
    @sweep
    def test_one_class_in_the_tail_is_dense(self, pair: tuple[np.ndarray, np.ndarray]) -> None:
        student, teacher = (torch.tensor(x, dtype=torch.float32) for x in pair)
        found = kd(student, sparse(pair[1], teacher.shape[1] - 1), temperature=3.0)
        assert found.item() == pytest.approx(kd(student, teacher, temperature=3.0).item(), rel=1e-4, abs=1e-5)
