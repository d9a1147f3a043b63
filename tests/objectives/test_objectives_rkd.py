"""Relational distillation by hand, in chunks, and near what has no direction."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

import kdcache.objectives.rkd as rkd
from kdcache.objectives.rkd import rkd_angle, rkd_distance


def test_distance_by_hand() -> None:
    """Student 1, 2, 3 over their mean 2; teacher 5, 0, 5 over 5, the mean of those above 0."""
    student = torch.tensor([[0.0], [1.0], [3.0]])
    teacher = torch.tensor([[0.0, 0.0], [3.0, 4.0], [0.0, 0.0]])
    # Differences -1/2 (0, 1), 0 (1, 2) and 3/2 (0, 2): 1/8, 0 and 1, twice each, of 9 pairs.
    assert rkd_distance(student, teacher).item() == pytest.approx(2 * (1 / 8 + 0 + 1) / 9)


def test_angle_by_hand() -> None:
    """A right angle with two of 45 degrees, against three points in a row."""
    student = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    teacher = torch.tensor([[0.0], [1.0], [2.0]])
    half = math.sqrt(0.5)
    # Cosines 0, half, half against 1, -1, 1.
    expected = 1 / 2 + (1 + half - 1 / 2) + (1 - half) ** 2 / 2
    assert rkd_angle(student, teacher).item() == pytest.approx(2 * expected / 27)


def test_near_rows_keep_their_distance() -> None:
    """1e-3 apart at 1e3 from the origin: inner products in float32 would not see it."""
    offsets = torch.tensor([[0.0], [1.0], [3.0]]) / 1024
    student = torch.cat([1024 + offsets, torch.full((3, 3), 1024.0)], dim=1)
    assert rkd_distance(student, offsets).item() == pytest.approx(0, abs=1e-10)
    assert rkd_angle(student, offsets).item() == pytest.approx(0, abs=1e-10)


def slopes(student: Tensor, teacher: Tensor) -> tuple[float, Tensor]:
    ours = student.clone().requires_grad_()
    value = rkd_angle(ours, teacher)
    value.backward()
    assert ours.grad is not None
    return value.item(), ours.grad


@pytest.mark.parametrize("anchors", [1, 4, 5])
def test_chunks_of_anchors_are_the_whole(anchors: int, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(13, 4, generator=generator), torch.randn(13, 6, generator=generator)
    value, gradient = slopes(student, teacher)
    monkeypatch.setattr(rkd, "_CHUNK_VALUES", anchors * 13 * 13)
    again, other = slopes(student, teacher)
    assert again == pytest.approx(value, rel=1e-6)
    torch.testing.assert_close(other, gradient, rtol=1e-5, atol=1e-8)


def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """What waits for the backward pass, and the largest tensor of either pass, of 64 rows and 262,144 triples."""
    rows, largest = 64, 0
    kept: dict[int, int] = {}
    monkeypatch.setattr(rkd, "_CHUNK_VALUES", 1 << 14)
    inner = rkd._cosines

    def spied(*arguments: object) -> Tensor:
        nonlocal largest
        found = inner(*arguments)  # type: ignore[arg-type]
        largest = max(largest, found.numel())
        return found

    def pack(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes() // 4
        return tensor

    monkeypatch.setattr(rkd, "_cosines", spied)
    generator = torch.Generator().manual_seed(0)
    student = torch.randn(rows, 8, generator=generator).requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        value = rkd_angle(student, torch.randn(rows, 8, generator=generator))
    value.backward()
    assert student.grad is not None
    assert student.grad.any()
    assert largest == 1 << 14
    assert sum(kept.values()) < rows * rows
