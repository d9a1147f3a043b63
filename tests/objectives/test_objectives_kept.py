"""Distillation on the kept classes alone: its value, its bias, and where it is the same as `kd`."""

from __future__ import annotations

import pytest
import torch

from kdcache.arrays import Array
from kdcache.codecs import CODECS, SparseLogits
from kdcache.objectives import kd, kd_kept

CLASSES = 9


def pair(rows: int, k: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, SparseLogits]:
    """Student and teacher logits float64 [B, C], and the teacher's k best."""
    student, teacher = torch.randn(2, rows, CLASSES, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    log_p, indices = teacher.log_softmax(1).topk(k, dim=1)
    rest = teacher.log_softmax(1).scatter(1, indices, -torch.inf)
    inside = torch.where(rest == -torch.inf, 0.0, rest)
    mean = inside.sum(1) / max(CLASSES - k, 1)
    variance = torch.where(rest == -torch.inf, 0.0, (rest - mean[:, None]) ** 2).sum(1) / max(CLASSES - k, 1)
    tail = None if k == CLASSES else torch.stack([mean, variance, rest.logsumexp(1)], dim=1)
    return student, teacher, SparseLogits(indices, log_p, tail, CLASSES)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_it_is_the_divergence_from_the_renormalised_head(temperature: float) -> None:
    student, teacher, targets = pair(6, 3)
    expected = 0.0
    for row in range(6):
        p = (teacher[row] / temperature).softmax(0)[targets.indices[row]]
        q = (student[row] / temperature).softmax(0)[targets.indices[row]]
        p = p / p.sum()
        expected += float((p * (p.log() - q.log())).sum()) * temperature**2 / 6
    assert float(kd_kept(student, targets, temperature=temperature)) == pytest.approx(expected, rel=1e-9)


def test_its_optimum_scales_the_head_up_and_forgets_the_tail() -> None:
    _, teacher, targets = pair(1, 3, seed=4)
    student = torch.zeros(1, CLASSES, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([student], lr=0.05)
    for _ in range(1500):
        optimizer.zero_grad()
        kd_kept(student, targets).backward()
        optimizer.step()
    q, p = student.detach().softmax(1), teacher.softmax(1)
    mass = p.gather(1, targets.indices).sum()
    assert 0.3 < mass < 0.9
    torch.testing.assert_close(q.gather(1, targets.indices), p.gather(1, targets.indices) / mass, atol=1e-3, rtol=1e-3)
    assert 1 - q.gather(1, targets.indices).sum() < 1e-3


def test_with_every_class_kept_or_dense_it_is_kd() -> None:
    student, teacher, targets = pair(5, CLASSES)
    torch.testing.assert_close(kd_kept(student, targets), kd(student, targets))
    torch.testing.assert_close(kd_kept(student, teacher), kd(student, teacher))


def test_padded_slots_count_for_nothing() -> None:
    logits = torch.randn(4, CLASSES, generator=torch.Generator().manual_seed(1)) * 4
    array = Array("float32", (CLASSES,))
    options = CODECS["topk"].configure({"k": 5, "mass": 0.8}, array)
    targets = CODECS["topk"].decode(CODECS["topk"].encode(logits, options, {}), array, options, {})
    assert isinstance(targets, SparseLogits)
    assert (targets.log_p == -torch.inf).any()
    student = torch.randn(4, CLASSES, generator=torch.Generator().manual_seed(2), requires_grad=True)
    value = kd_kept(student, targets)
    value.backward()
    whole = 0.0
    for row in range(4):
        kept = targets.log_p[row] > -torch.inf
        p = targets.log_p[row][kept].softmax(0)
        whole += float((p * (p.log() - student.detach()[row].log_softmax(0)[targets.indices[row][kept]])).sum()) / 4
    assert float(value.detach()) == pytest.approx(whole, rel=1e-5)
    assert student.grad is not None
    assert torch.isfinite(student.grad).all()
