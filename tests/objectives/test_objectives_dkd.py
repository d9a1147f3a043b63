"""Decoupled distillation: float64, by hand, its identity with kd, and labels that no kept class is."""

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
    decoupled,
    drawn,
    padded,
    pairs,
    quantised,
    softmax,
    sparse,
    sweep,
    temperatures,
)

from kdcache.codecs import SparseLogits
from kdcache.errors import UsageError
from kdcache.objectives import dkd, kd

weights = st.sampled_from([(1.0, 8.0), (1.0, 0.0), (0.0, 1.0), (0.5, 2.0)])


def labels(data: st.DataObject, shape: tuple[int, ...], lowest: int = -1) -> np.ndarray:
    rows, classes = shape
    return np.array(data.draw(st.lists(st.integers(lowest, classes - 1), min_size=rows, max_size=rows)))


def grouped(
    targets: SparseLogits, student: np.ndarray, label: np.ndarray, t: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Teacher and student [B, C + 1] over kept classes, the label, and what is left of the tail, in the last column."""
    p, q = bucketed(targets, t), softmax(student / t)
    ours, theirs = np.zeros((len(q), q.shape[1] + 1)), np.zeros((len(q), q.shape[1] + 1))
    for row, (indices, log_p) in enumerate(zip(targets.indices.numpy(), targets.log_p.numpy(), strict=True)):
        kept = indices[np.isfinite(log_p)]
        theirs[row, kept], tail = p[row, : len(kept)], p[row, -1]
        named = set(kept.tolist())
        if label[row] >= 0 and label[row] not in named:
            count = q.shape[1] - len(named)
            theirs[row, label[row]], tail = tail / count, tail * (count - 1) / count
            named.add(int(label[row]))
        theirs[row, -1] = tail
        for group in named:
            ours[row, group] = q[row, group]
        ours[row, -1] = math.fsum(q[row, group] for group in range(q.shape[1]) if group not in named)
    return theirs, ours, label


class TestReference:
    @given(pairs(), temperatures, weights, st.data())
    @sweep
    def test_dense_and_quantised(
        self, pair: tuple[np.ndarray, np.ndarray], t: float, weight: tuple[float, float], data: st.DataObject
    ) -> None:
        student, teacher = pair
        label, (codes, stands_for) = labels(data, teacher.shape), quantised(teacher)
        for targets, p in ((torch.tensor(teacher, dtype=torch.float32), teacher), (codes, stands_for)):
            agrees(
                lambda s, x=targets: dkd(  # type: ignore[misc]
                    s, x, torch.from_numpy(label), temperature=t, alpha=weight[0], beta=weight[1]
                ),
                lambda s, p=p: t * t * decoupled(softmax(p / t), softmax(s / t), label, *weight),  # type: ignore[misc]
                student,
                3 * t,
            )

    @given(pairs(), temperatures, weights, st.data())
    @sweep
    def test_sparse_and_padded(
        self, pair: tuple[np.ndarray, np.ndarray], t: float, weight: tuple[float, float], data: st.DataObject
    ) -> None:
        student, teacher = pair
        label = labels(data, teacher.shape)
        slots = data.draw(st.integers(1, teacher.shape[1] - 1))
        kept = data.draw(st.lists(st.integers(1, slots), min_size=len(teacher), max_size=len(teacher)))
        for targets in (sparse(teacher, slots), padded(teacher, kept, slots)):
            agrees(
                lambda s, x=targets: dkd(  # type: ignore[misc]
                    s, x, torch.from_numpy(label), temperature=t, alpha=weight[0], beta=weight[1]
                ),
                lambda s, x=targets: t * t * decoupled(*grouped(x, s, label, t), *weight),  # type: ignore[misc]
                student,
                3 * t,
            )

    @given(pairs(), temperatures, st.data())
    @sweep
    def test_kd_is_tckd_and_what_is_left_of_nckd(
        self, pair: tuple[np.ndarray, np.ndarray], t: float, data: st.DataObject
    ) -> None:
        """Zhao et al. 2022, eq. 5: kd = TCKD + (1 - p_t) NCKD, row by row."""
        student, teacher = (torch.tensor(x) for x in pair)
        label = torch.from_numpy(labels(data, tuple(teacher.shape), 0))
        for row in range(len(student)):
            one = slice(row, row + 1)
            rest = 1 - (teacher[row] / t).softmax(0)[label[row]].item()
            found = dkd(student[one], teacher[one], label[one], temperature=t, alpha=1.0, beta=rest)
            assert found.item() == pytest.approx(kd(student[one], teacher[one], temperature=t).item(), abs=1e-9)


def test_by_hand() -> None:
    """p = (1/2, 1/4, 1/4), q = (1/4, 1/4, 1/2), label 0: TCKD of halves and (1/4, 3/4), NCKD of halves and thirds."""
    student, teacher = torch.log(torch.tensor([[0.25, 0.25, 0.5]])), torch.log(torch.tensor([[0.5, 0.25, 0.25]]))
    tckd = 0.5 * math.log(2) + 0.5 * math.log(2 / 3)
    nckd = 0.5 * math.log(1.5) + 0.5 * math.log(0.75)
    label = torch.tensor([0])
    assert dkd(student, teacher, label).item() == pytest.approx(tckd + 8 * nckd)
    twice = dkd(2 * student, 2 * teacher, label, temperature=2.0, alpha=3.0, beta=5.0)
    assert twice.item() == pytest.approx(4 * (3 * tckd + 5 * nckd))


def test_a_label_in_the_tail_gets_its_average() -> None:
    """Kept: class 0 with 1/2; two others share 1/2, so the label 2 gets 1/4, and 1/4 is left for class 1."""
    tail = torch.tensor([[math.log(0.25), 0.0, math.log(0.5)]])
    targets = SparseLogits(torch.tensor([[0]]), torch.tensor([[math.log(0.5)]]), tail, 3)
    student = torch.log(torch.tensor([[0.25, 0.5, 0.25]]))
    dense = torch.log(torch.tensor([[0.5, 0.25, 0.25]]))
    for label in (0, 1, 2):
        given = torch.tensor([label])
        # With a label in the tail every class stands alone; with one that is kept, the two others are one group.
        expected = dkd(student, dense, given).item() if label else 0.5 * math.log(2) + 0.5 * math.log(2 / 3)
        assert dkd(student, targets, given).item() == pytest.approx(expected, abs=1e-6)


def test_a_tail_of_one_class_is_dense() -> None:
    random = np.random.default_rng(4)
    student, teacher = torch.tensor(random.normal(size=(6, 5))), random.normal(size=(6, 5))
    label = torch.from_numpy(teacher.argmin(1))  # always that one
    found = dkd(student, sparse(teacher, 4), label, temperature=2.0).item()
    assert found == pytest.approx(dkd(student, torch.from_numpy(teacher), label, temperature=2.0).item(), rel=1e-5)


def test_unlabelled_rows_change_nothing() -> None:
    generator = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(2, 5, 4, generator=generator)
    label = torch.tensor([2, -1, 0, -1, 3])
    some = dkd(student[label >= 0], teacher[label >= 0], label[label >= 0])
    assert dkd(student, teacher, label).item() == pytest.approx(some.item())
    ours = student.clone().requires_grad_()
    none = dkd(ours, teacher, torch.full((5,), -1))
    none.backward()
    assert none.item() == 0
    assert ours.grad is not None
    assert not ours.grad.any()


def test_what_is_refused() -> None:
    student, label = torch.zeros(2, 4), torch.tensor([0, 1])
    with pytest.raises(UsageError, match=r"dkd: it divides by one minus the label's probability, and .* random draws"):
        dkd(student, drawn(np.eye(2, 4), 1.0, 5, np.random.default_rng(0))[0], label)
    with pytest.raises(UsageError, match="dkd: labels run from 0 to 4"):
        dkd(student, torch.zeros(2, 4), torch.tensor([0, 4]))
    with pytest.raises(UsageError, match="gives 4 outputs, the store's logits have 5 classes"):
        dkd(student, sparse(np.eye(2, 5), 2), label)
