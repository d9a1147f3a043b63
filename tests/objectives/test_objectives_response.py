"""Losses on logits: values by hand, what must not matter, and what is refused."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from objectives_reference import drawn, quantised, sparse
from torch import Tensor

from kdcache.codecs import SampledLogits, SparseLogits
from kdcache.errors import UsageError
from kdcache.objectives import ce, dkd, hard_label, jsd, kd, mse_logits, reverse_kl, soft_ce


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


def every(teacher: np.ndarray) -> dict[str, Callable[[Tensor], Tensor]]:
    dense, kept = torch.tensor(teacher, dtype=torch.float32), sparse(teacher, 3)
    # Keyed by the order of the row's classes: a row's draws do not depend on its place, nor on a constant.
    draws = [drawn(row[None], 2.0, 9, np.random.default_rng(row.argsort().tolist()))[0] for row in teacher]
    few = SampledLogits(
        torch.cat([torch.empty(0, teacher.shape[1] + 1, dtype=torch.int64), *(one.indices for one in draws)]),
        torch.cat([torch.empty(0, teacher.shape[1] + 1), *(one.weights for one in draws)]),
        2.0,
        teacher.shape[1],
    )
    codes = quantised(teacher)[0]
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
        "mse_logits sparse": lambda s: mse_logits(s, kept),
        "hard_label sampled": lambda s: hard_label(s, few),
        "kd sampled": lambda s: kd(s, few, temperature=2.0),
        "soft_ce sampled": lambda s: soft_ce(s, few, temperature=2.0),
        "kd quantised": lambda s: kd(s, codes, temperature=2.0),
        "reverse_kl": lambda s: reverse_kl(s, dense, temperature=2.0),
        "reverse_kl sparse": lambda s: reverse_kl(s, kept, temperature=2.0),
        "jsd": lambda s: jsd(s, dense, temperature=2.0),
        "jsd sparse": lambda s: jsd(s, kept, temperature=2.0),
        "dkd": lambda s: dkd(s, dense, label, temperature=2.0),
        "dkd sparse": lambda s: dkd(s, kept, label, temperature=2.0),
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

    @pytest.mark.parametrize("loss", [kd, soft_ce])
    def test_a_teacher_without_a_number_shows_in_the_loss(self, loss: Callable[..., Tensor]) -> None:
        """And not in the gradient alone, where nobody looks: a store from a stranger may hold NaN."""
        assert loss(torch.zeros(2, 3), torch.tensor([[1.0, 2.0, 3.0], [1.0, math.nan, 3.0]])).isnan()
