"""Losses on logits: values by hand, an independent float64 reference with its gradients, and what must not matter."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from kdcache.codecs import SparseLogits
from kdcache.errors import UsageError
from kdcache.objectives import ce, hard_label, kd, mse_logits, soft_ce

Reference = Callable[[np.ndarray], float]


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


def sparse(teacher: np.ndarray, k: int) -> SparseLogits:
    """What a lossless top-k codec would give."""
    log_p = np.log(softmax(teacher))
    order = np.argsort(-log_p, axis=1, kind="stable")
    rest = np.take_along_axis(log_p, order[:, k:], axis=1)
    tail = None
    if rest.shape[1]:
        tail = torch.tensor(np.stack([rest.mean(1), rest.var(1), np.log(np.exp(rest).sum(1))], 1), dtype=torch.float32)
    kept = torch.tensor(np.take_along_axis(log_p, order[:, :k], axis=1), dtype=torch.float32)
    return SparseLogits(torch.from_numpy(order[:, :k].copy()), kept, tail, teacher.shape[1])


def bucketed(targets: SparseLogits, temperature: float) -> np.ndarray:
    """p_T [B, K + 1] as the targets state it, in float64; that statement is tested with the codecs."""
    kept, tail = targets.log_probs(temperature)
    return np.exp(torch.cat([kept, tail[:, None]], 1).double().numpy())


def bucketed_student(student: np.ndarray, targets: SparseLogits, temperature: float) -> np.ndarray:
    """q_T [B, K + 1]; the tail is summed class by class."""
    q = softmax(student / temperature)
    rows = []
    for row, kept in zip(q, targets.indices.numpy(), strict=True):
        others = [value for label, value in enumerate(row) if label not in set(kept.tolist())]
        rows.append([*row[kept], math.fsum(others)])
    return np.array(rows)


def cross(p: np.ndarray, q: np.ndarray) -> float:
    return -sum(math.fsum(a * math.log(b) for a, b in zip(*rows, strict=True) if a > 0)
                for rows in zip(p, q, strict=True)) / len(p)


def divergence(p: np.ndarray, q: np.ndarray) -> float:
    return cross(p, q) - cross(p, p)


def slopes(loss: Reference, student: np.ndarray, step: float = 1e-5) -> np.ndarray:
    """Central differences in float64."""
    found = np.zeros_like(student)
    for place in np.ndindex(student.shape):
        nudge = np.zeros_like(student)
        nudge[place] = step
        found[place] = (loss(student + nudge) - loss(student - nudge)) / (2 * step)
    return found


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


class TestByHand:
    """q = (1/4, 3/4), p = (1/2, 1/2); at T = 2 the student's logits are 2 log q so that q_2 is the same."""

    student = torch.tensor([[0.0, math.log(3)]])
    teacher = torch.tensor([[5.0, 5.0]])
    kl = 0.5 * math.log(2) + 0.5 * math.log(2 / 3)

    def test_ce(self) -> None:
        assert ce(self.student, torch.tensor([0])).item() == pytest.approx(math.log(4))
        both = ce(self.student.repeat(2, 1), torch.tensor([0, 1]))
        assert both.item() == pytest.approx((math.log(4) + math.log(4 / 3)) / 2)

    def test_kd(self) -> None:
        assert kd(self.student, self.teacher).item() == pytest.approx(self.kl)
        assert kd(2 * self.student, self.teacher, temperature=2).item() == pytest.approx(4 * self.kl)

    def test_kd_is_a_mean_over_rows(self) -> None:
        two = kd(torch.cat([self.student, torch.zeros(1, 2)]), self.teacher.repeat(2, 1))
        assert two.item() == pytest.approx(self.kl / 2)

    def test_kd_sparse(self) -> None:
        """Kept p = 1/2, a tail of two classes with mass 1/2; the student spreads (1/4, 1/2, 1/4): its tail is 3/4."""
        tail = torch.tensor([[math.log(0.25), 0.0, math.log(0.5)]])
        targets = SparseLogits(torch.tensor([[0]]), torch.tensor([[math.log(0.5)]]), tail, 3)
        student = torch.log(torch.tensor([[0.25, 0.5, 0.25]]))
        assert kd(student, targets).item() == pytest.approx(self.kl)
        assert soft_ce(student, targets).item() == pytest.approx(0.5 * math.log(4) + 0.5 * math.log(4 / 3))

    def test_soft_ce(self) -> None:
        expected = 0.5 * math.log(4) + 0.5 * math.log(4 / 3)
        assert soft_ce(self.student, self.teacher).item() == pytest.approx(expected)
        assert soft_ce(2 * self.student, self.teacher, temperature=2).item() == pytest.approx(4 * expected)

    def test_mse_logits(self) -> None:
        student, teacher = torch.tensor([[1.0, 2.0], [0.0, 0.0]]), torch.tensor([[1.0, 4.0], [3.0, 1.0]])
        assert mse_logits(student, teacher).item() == pytest.approx((0 + 4 + 9 + 1) / 4)
        assert mse_logits(student, teacher, centred=True).item() == pytest.approx((1 + 1 + 1 + 1) / 4)

    def test_hard_label(self) -> None:
        assert hard_label(self.student, torch.tensor([[2.0, 1.0]])).item() == pytest.approx(math.log(4))
        assert hard_label(self.student, sparse(np.array([[2.0, 1.0]]), 1)).item() == pytest.approx(math.log(4))


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
        agrees(lambda s: kd(s, targets, temperature=t),
               lambda s: t * t * divergence(p, bucketed_student(s, targets, t)), student, t)

    @given(pairs(), temperatures, st.data())
    @sweep
    def test_soft_ce(self, pair: tuple[np.ndarray, np.ndarray], t: float, data: st.DataObject) -> None:
        student, teacher = pair
        dense = torch.tensor(teacher, dtype=torch.float32)
        agrees(lambda s: soft_ce(s, dense, temperature=t),
               lambda s: t * t * cross(softmax(teacher / t), softmax(s / t)), student, t)
        targets = sparse(teacher, data.draw(st.integers(1, teacher.shape[1] - 1)))
        agrees(lambda s: soft_ce(s, targets, temperature=t),
               lambda s: t * t * cross(bucketed(targets, t), bucketed_student(s, targets, t)), student, t)

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


def every(teacher: np.ndarray) -> dict[str, Callable[[Tensor], Tensor]]:
    dense, kept = torch.tensor(teacher, dtype=torch.float32), sparse(teacher, 3)
    label = torch.from_numpy(teacher.argmin(1))
    return {
        "ce": lambda s: ce(s, label),
        "hard_label": lambda s: hard_label(s, dense),
        "hard_label sparse": lambda s: hard_label(s, kept),
        "kd": lambda s: kd(s, dense, temperature=2.0),
        "kd sparse": lambda s: kd(s, kept, temperature=2.0),
        "soft_ce": lambda s: soft_ce(s, dense, temperature=2.0),
        "soft_ce sparse": lambda s: soft_ce(s, kept, temperature=2.0),
        "mse_logits": lambda s: mse_logits(s, dense),
        "mse_logits centred": lambda s: mse_logits(s, dense, centred=True),
    }


EVERY = sorted(every(np.zeros((1, 4))))


@pytest.mark.parametrize("name", EVERY)
class TestEvery:
    random = np.random.default_rng(3)
    student = torch.tensor(random.normal(0, 3, (6, 9)), dtype=torch.float32)
    teacher = random.normal(0, 3, (6, 9))

    def test_order_of_rows_does_not_matter(self, name: str) -> None:
        order = np.array([4, 0, 5, 2, 1, 3])
        there = every(self.teacher[order])[name](self.student[torch.from_numpy(order)])
        assert there.item() == pytest.approx(every(self.teacher)[name](self.student).item(), rel=1e-5)

    def test_constant_added_to_logits_does_not_matter(self, name: str) -> None:
        moved = every(self.teacher - 7.5)[name](self.student + 20.0).item()
        same = moved == pytest.approx(every(self.teacher)[name](self.student).item(), rel=1e-4)
        assert same == (name != "mse_logits")

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_half_precision_is_computed_in_float32(self, name: str, dtype: torch.dtype) -> None:
        half = (100 * self.student).to(dtype).requires_grad_()  # in float16 the squares and T^2 sums would overflow
        value = every(self.teacher)[name](half)
        value.backward()
        assert value.dtype == torch.float32
        assert value.item() == every(self.teacher)[name](half.detach().float()).item()
        assert half.grad is not None
        assert half.grad.dtype == dtype
        assert half.grad.isfinite().all()

    def test_batch_without_rows_is_zero(self, name: str) -> None:
        student = torch.zeros(0, 9, requires_grad=True)
        value = every(self.teacher[:0])[name](student)
        value.backward()
        assert value.item() == 0
        assert student.grad is not None

    def test_extreme_logits_stay_finite(self, name: str) -> None:
        student = torch.tensor([[1e4, -1e4, 0.0, 5.0], [-1e4, 0.0, 1e4, -1e4]], requires_grad=True)
        value = every(np.array([[80.0, -300.0, 0.0, -70.0], [300.0, -300.0, 300.0, 0.0]]))[name](student)
        value.backward()
        assert value.isfinite()
        assert student.grad is not None
        assert student.grad.isfinite().all()

    def test_other_rows_are_refused(self, name: str) -> None:
        with pytest.raises(UsageError, match=r"rows"):
            every(self.teacher)[name](self.student[:5])

    def test_student_that_gives_no_logits_is_refused(self, name: str) -> None:
        with pytest.raises(UsageError, match=r"outputs are \[6, 9, 2\]"):
            every(self.teacher)[name](torch.zeros(6, 9, 2))


@pytest.mark.parametrize("name", [name for name in EVERY if name != "ce"])  # a label has no width
def test_other_width_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match=r"gives 10 outputs, the store's logits have 9 classes; set .* to 9"):
        every(np.zeros((6, 9)))[name](torch.zeros(6, 10))


class TestLabels:
    def test_unlabelled_rows_change_nothing(self) -> None:
        student = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
        label = torch.tensor([2, -1, 0, -1, 3])
        assert ce(student, label).item() == pytest.approx(ce(student[label >= 0], label[label >= 0]).item())
        other = student.clone()
        other[label < 0] = 50.0
        assert ce(other, label).item() == ce(student, label).item()

    def test_no_labelled_row_is_zero_with_a_graph(self) -> None:
        student = torch.randn(3, 4, requires_grad=True)
        value = ce(student, torch.full((3,), -1))
        value.backward()
        assert value.item() == 0
        assert student.grad is not None
        assert not student.grad.any()

    @pytest.mark.parametrize("label", [4, -2])
    def test_label_out_of_range_is_refused(self, label: int) -> None:
        with pytest.raises(UsageError, match="outputs take 0 to 3, or -1 for none"):
            ce(torch.zeros(2, 4), torch.tensor([0, label]))

    def test_labels_of_another_kind_are_refused(self) -> None:
        with pytest.raises(UsageError, match=r"float32 \[2\].*need int64 \[2\]"):
            ce(torch.zeros(2, 4), torch.zeros(2))


class TestRefused:
    @pytest.mark.parametrize("temperature", [0.0, -1.0, math.nan, math.inf])
    @pytest.mark.parametrize("loss", [kd, soft_ce])
    def test_temperature(self, loss: Callable[..., Tensor], temperature: float) -> None:
        with pytest.raises(UsageError, match="a finite number above 0"):
            loss(torch.zeros(2, 4), torch.zeros(2, 4), temperature=temperature)

    @pytest.mark.parametrize("loss", [kd, soft_ce])
    def test_low_temperature_on_sparse_targets_alone(self, loss: Callable[..., Tensor]) -> None:
        assert loss(torch.zeros(2, 4), torch.eye(2, 4), temperature=0.5).isfinite()
        with pytest.raises(UsageError, match=r"temperature = 0\.5"):
            loss(torch.zeros(2, 4), sparse(np.eye(2, 4), 2), temperature=0.5)

    def test_sparse_mse(self) -> None:
        with pytest.raises(UsageError, match=r'relative to the log-partition.*codec = "dense"'):
            mse_logits(torch.zeros(2, 4), sparse(np.eye(2, 4), 2))  # type: ignore[arg-type]


class Watch(TorchDispatchMode):
    """Fails on any tensor of `limit` elements or more that depends on one of the marked tensors."""

    def __init__(self, marked: list[Tensor], limit: int) -> None:
        super().__init__()
        self.marked, self.limit, self.largest = {id(tensor): tensor for tensor in marked}, limit, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        made = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        self.largest = max([self.largest, *(tensor.numel() for tensor in made)])
        if any(id(leaf) in self.marked for leaf in tree_leaves((args, kwargs))):
            for tensor in made:
                assert tensor.numel() < self.limit, f"{func} makes {list(tensor.shape)} from the teacher"
                self.marked[id(tensor)] = tensor
        return result


class TestMemory:
    rows, classes, kept = 8, 50_000, 16

    def watched(self, loss: Callable[[Tensor, SparseLogits], Tensor]) -> Watch:
        generator = torch.Generator().manual_seed(1)
        teacher, indices = torch.randn(self.rows, self.classes, generator=generator).log_softmax(1).topk(self.kept, 1)
        tail = torch.tensor([[-11.0, 1.0, -0.01]]).repeat(self.rows, 1)
        targets = SparseLogits(indices, teacher, tail, self.classes)
        student = torch.randn(self.rows, self.classes, generator=generator, requires_grad=True)
        watch = Watch([targets.log_p, tail], self.rows * self.classes)
        with watch:
            value = loss(student, targets)
        value.backward()
        assert value.isfinite()
        return watch

    @pytest.mark.parametrize("loss", [kd, soft_ce, hard_label])
    def test_sparse_teacher_is_never_made_dense(self, loss: Callable[..., Tensor]) -> None:
        assert self.watched(loss).largest == self.rows * self.classes  # the student's own

    def test_the_watch_would_see_it(self) -> None:
        def dense(student: Tensor, targets: SparseLogits) -> Tensor:
            return torch.zeros_like(student).scatter(1, targets.indices, targets.log_p.exp()).mul(student).sum()

        with pytest.raises(AssertionError, match="from the teacher"):
            self.watched(dense)
