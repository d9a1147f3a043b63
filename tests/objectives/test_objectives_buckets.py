"""The student's log-probabilities of kept classes and of all others; and that T^2 scales gradients, not only values."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from objectives_reference import drawn, padded, quantised, softmax, sparse, sweep
from torch import Tensor

from kdcache.objectives import dkd, jsd, kd, reverse_kl, soft_ce
from kdcache.objectives.buckets import NOTHING, student_buckets


def plain(student: Tensor, indices: Tensor, valid: Tensor, temperature: float) -> Tensor:
    """The same by autograd of plain tensor operations."""
    log_q = torch.log_softmax(student / temperature, dim=1)
    others = torch.ones_like(student, dtype=torch.bool).scatter(1, indices, False)
    tail = torch.stack(
        [
            row[mask].logsumexp(0) if mask.any() else torch.tensor(NOTHING, dtype=row.dtype)
            for row, mask in zip(log_q, others, strict=True)
        ]
    )
    return torch.cat([log_q.gather(1, indices).masked_fill(~valid, NOTHING), tail[:, None]], dim=1)


@given(st.integers(1, 3), st.integers(1, 7), st.data(), st.sampled_from([0.5, 1.0, 3.0]))
@sweep
def test_values_and_gradients(rows: int, classes: int, data: st.DataObject, temperature: float) -> None:
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 2**31)))
    student = (4 * torch.randn(rows, classes, generator=generator, dtype=torch.float64)).requires_grad_()
    slots = data.draw(st.integers(1, classes))
    indices = torch.rand(rows, classes, generator=generator).argsort(1)[:, :slots]
    valid = torch.rand(rows, slots, generator=generator) < 0.7
    valid[:, 0] = True
    indices = torch.where(valid, indices, indices[:, :1])
    found, expected = (f(student, indices, valid, temperature) for f in (student_buckets, plain))
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(torch.logsumexp(found, 1), torch.zeros(rows, dtype=torch.float64))
    weights = torch.randn(found.shape, generator=generator, dtype=torch.float64).masked_fill(found == NOTHING, 0.0)
    slopes = [torch.autograd.grad((log_q * weights).sum(), student)[0] for log_q in (found, expected)]
    torch.testing.assert_close(*slopes)


def test_gradcheck() -> None:
    student = torch.randn(3, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64, requires_grad=True)
    indices = torch.tensor([[0, 3, 0], [5, 2, 1], [4, 4, 4]])
    valid = torch.tensor([[True, True, False], [True, True, True], [True, False, False]])

    def loss(s: Tensor) -> Tensor:
        log_q = student_buckets(s, indices, valid, 2.0)
        return torch.where(log_q == NOTHING, 0.0, log_q * log_q.exp()).sum(dim=1)

    assert torch.autograd.gradcheck(loss, (student,))


def test_a_tail_too_small_for_one_minus_the_rest() -> None:
    student = torch.tensor([[0.0, -40.0, -41.0]], requires_grad=True)
    found = student_buckets(student, torch.tensor([[0]]), torch.tensor([[True]]), 1.0)
    assert found[0, 1].item() == pytest.approx(np.logaddexp(-40, -41), rel=1e-6)
    found[0, 1].backward()
    assert student.grad is not None
    np.testing.assert_allclose(student.grad[0], [-1, *softmax(np.array([[-40.0, -41.0]]))[0]], rtol=1e-5)


def test_far_apart_logits_stay_finite() -> None:
    student = torch.tensor([[1e30, -1e30, 0.0, 1e30], [0.0, 1e30, 0.0, 0.0]], requires_grad=True)
    found = student_buckets(student, torch.tensor([[0], [0]]), torch.tensor([[True], [True]]), 1.0)
    found.exp().sum().backward()
    assert found.isfinite().all()
    assert student.grad is not None
    assert student.grad.isfinite().all()


def test_a_diverged_student_is_not_hidden() -> None:
    student = torch.tensor([[float("nan"), 0.0, 1.0]])
    assert student_buckets(student, torch.tensor([[1]]), torch.tensor([[True]]), 1.0).isnan().any()


RANDOM = np.random.default_rng(5)
STUDENT, TEACHER = RANDOM.normal(0, 2, (2, 4, 6))
LABEL = torch.tensor([0, 5, 2, 2])
# At T the logits are T times as large, so that the softened distributions are those of T = 1.
WITH_TEMPERATURE: dict[str, Callable[[Tensor, float], Tensor]] = {
    "kd": lambda s, t: kd(s, torch.tensor(t * TEACHER), temperature=t),
    "soft_ce": lambda s, t: soft_ce(s, torch.tensor(t * TEACHER), temperature=t),
    "reverse_kl": lambda s, t: reverse_kl(s, torch.tensor(t * TEACHER), temperature=t),
    "jsd": lambda s, t: jsd(s, torch.tensor(t * TEACHER), temperature=t),
    "dkd": lambda s, t: dkd(s, torch.tensor(t * TEACHER), LABEL, temperature=t),
    "kd sampled": lambda s, t: kd(s, drawn(t * TEACHER, t, 9, np.random.default_rng(1))[0], temperature=t),
    "kd all kept": lambda s, t: kd(s, sparse(t * TEACHER, 6), temperature=t),
    "kd tail of one": lambda s, t: kd(s, sparse(t * TEACHER, 5), temperature=t),
    "reverse_kl tail of one": lambda s, t: reverse_kl(s, sparse(t * TEACHER, 5), temperature=t),
    "jsd tail of one": lambda s, t: jsd(s, sparse(t * TEACHER, 5), temperature=t),
    "dkd tail of one": lambda s, t: dkd(s, sparse(t * TEACHER, 5), LABEL, temperature=t),
}


@pytest.mark.parametrize("name", sorted(WITH_TEMPERATURE))
@pytest.mark.parametrize("temperature", [2.0, 4.0])
def test_temperature_squared_scales_the_gradient_too(name: str, temperature: float) -> None:
    """The value T^2 times, and so, by the logits that are T times as large, T times the gradient; for each row."""
    found = []
    for t in (1.0, temperature):
        student = torch.tensor(t * STUDENT, requires_grad=True)
        value = WITH_TEMPERATURE[name](student, t)
        value.backward()
        assert student.grad is not None
        found.append((value.item(), student.grad))
    assert found[1][0] == pytest.approx(temperature**2 * found[0][0], rel=1e-5)
    torch.testing.assert_close(found[1][1], temperature * found[0][1], rtol=1e-4, atol=1e-6)
    assert found[0][1].abs().max() > 0.01


DOUBLE: dict[str, Callable[[Tensor], Tensor]] = {
    "kd": lambda s: kd(s, torch.tensor(TEACHER), temperature=3.0),
    "kd padded": lambda s: kd(s, padded(TEACHER, [1, 4, 2, 3], 4), temperature=3.0),
    "kd sampled": lambda s: kd(s, drawn(TEACHER, 3.0, 9, np.random.default_rng(1))[0], temperature=3.0),
    "reverse_kl padded": lambda s: reverse_kl(s, padded(TEACHER, [1, 4, 2, 3], 4), temperature=3.0),
    "jsd quantised": lambda s: jsd(s, quantised(TEACHER)[0], temperature=3.0, beta=0.3),
    "jsd padded": lambda s: jsd(s, padded(TEACHER, [1, 4, 2, 3], 4), temperature=3.0, beta=0.3),
    "dkd": lambda s: dkd(s, torch.tensor(TEACHER), LABEL, temperature=3.0),
    "dkd padded": lambda s: dkd(s, padded(TEACHER, [1, 4, 2, 3], 4), LABEL, temperature=3.0),
}


@pytest.mark.parametrize("name", sorted(DOUBLE))
def test_gradients_in_double_precision(name: str) -> None:
    student = torch.tensor(STUDENT, requires_grad=True)
    assert DOUBLE[name](student).dtype == torch.float64
    assert torch.autograd.gradcheck(DOUBLE[name], (student,))
