"""Losses on logits against an independent float64 reference, values and gradients."""

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
    cross,
    divergence,
    padded,
    pairs,
    quantised,
    softmax,
    sparse,
    sweep,
    temperatures,
)

from kdcache.objectives import ce, hard_label, kd, soft_ce


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
    def test_kd_padded(self, pair: tuple[np.ndarray, np.ndarray], t: float, data: st.DataObject) -> None:
        student, teacher = pair
        slots = data.draw(st.integers(1, teacher.shape[1] - 1))
        kept = data.draw(st.lists(st.integers(1, slots), min_size=len(teacher), max_size=len(teacher)))
        targets = padded(teacher, kept, slots)
        p = bucketed(targets, t)
        for loss, reference in ((kd, divergence), (soft_ce, cross)):
            agrees(
                lambda s, loss=loss: loss(s, targets, temperature=t),  # type: ignore[misc]
                lambda s, reference=reference: t * t * reference(p, bucketed_student(s, targets, t)),  # type: ignore[misc]
                student,
                t,
            )

    @given(pairs(), temperatures)
    @sweep
    def test_quantised(self, pair: tuple[np.ndarray, np.ndarray], t: float) -> None:
        student, (targets, teacher) = pair[0], quantised(pair[1])
        p = softmax(teacher / t)
        agrees(lambda s: kd(s, targets, temperature=t), lambda s: t * t * divergence(p, softmax(s / t)), student, t)
        agrees(lambda s: soft_ce(s, targets, temperature=t), lambda s: t * t * cross(p, softmax(s / t)), student, t)

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
        best_code = quantised(teacher)[0].codes.numpy().argmax(1)
        agrees(lambda s: hard_label(s, quantised(teacher)[0]), lambda s: reference(s, best_code), student)
        for targets in (torch.tensor(teacher), sparse(teacher, 1)):
            agrees(lambda s, t=targets: hard_label(s, t), lambda s: reference(s, best), student)  # type: ignore[misc]

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
