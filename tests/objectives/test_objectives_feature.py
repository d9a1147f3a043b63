"""`hint` and its adapters."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from kdcache.errors import UsageError
from kdcache.objectives import Adapter, hint


def test_hint_by_hand() -> None:
    student = torch.tensor([[1.0, 2.0], [3.0, 4.0]], requires_grad=True)
    value = hint(student, torch.tensor([[1.0, 0.0], [0.0, 3.0]]))
    value.backward()
    assert value.item() == pytest.approx((0 + 4 + 9 + 1) / 4)
    torch.testing.assert_close(student.grad, torch.tensor([[0.0, 4.0], [6.0, 2.0]]) / 4)


def test_hint_through_an_adapter_against_float64() -> None:
    random = np.random.default_rng(0)
    student, teacher = random.normal(size=(3, 2, 6, 4)), random.normal(size=(3, 5, 3, 8))
    adapter = Adapter((2, 6, 4), (5, 3, 8))
    assert isinstance(adapter.project, nn.Conv2d)
    weight, bias = (parameter.detach().double().numpy() for parameter in adapter.project.parameters())
    ours = student.reshape(3, 2, 3, 2, 4).mean(axis=3)  # the shared space is 3 x 4
    theirs = teacher.reshape(3, 5, 3, 4, 2).mean(axis=4)
    expected = np.mean((np.einsum("od,bdhw->bohw", weight[:, :, 0, 0], ours) + bias[:, None, None] - theirs) ** 2)
    found = hint(adapter(torch.tensor(student, dtype=torch.float32)), torch.tensor(teacher, dtype=torch.float32))
    assert found.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("student", "teacher", "kind", "made"),
    [
        ((4,), (6,), nn.Linear, (6,)),
        ((4,), (4,), nn.Linear, (4,)),  # no identity, even where the widths agree
        ((4, 8, 8), (6, 4, 4), nn.Conv2d, (6, 4, 4)),
        ((4, 4, 4), (6, 8, 8), nn.Conv2d, (6, 4, 4)),
        ((4, 7, 7), (6, 3, 5), nn.Conv2d, (6, 3, 5)),
        ((4, 1, 1), (6, 8, 8), nn.Conv2d, (6, 1, 1)),
        ((4, 8, 8), (6,), nn.Linear, (6,)),  # a store with pool = "avg"
        ((4,), (6, 8, 8), nn.Linear, (6,)),
    ],
)
def test_adapter(student: tuple[int, ...], teacher: tuple[int, ...], kind: type, made: tuple[int, ...]) -> None:
    adapter = Adapter(student, teacher)
    assert isinstance(adapter.project, kind)
    feature = torch.randn(2, *student, requires_grad=True)
    adapted = adapter(feature)
    assert adapted.shape == (2, *made)
    hint(adapted, torch.randn(2, *teacher)).backward()
    assert feature.grad is not None
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in adapter.parameters())


def test_a_constant_map_is_its_own_mean() -> None:
    assert hint(torch.full((2, 3, 2, 2), 5.0), torch.full((2, 3, 7, 9), 5.0)).item() == pytest.approx(0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype: torch.dtype) -> None:
    feature = (1000 * torch.randn(2, 3, 4, 4)).to(dtype).requires_grad_()
    teacher = torch.randn(2, 5, 4, 4).to(dtype)
    value = hint(Adapter((3, 4, 4), (5, 4, 4))(feature), teacher)
    value.backward()
    assert value.dtype == torch.float32
    assert value.isfinite()
    assert feature.grad is not None
    assert feature.grad.dtype == dtype


def test_batch_without_rows_is_zero() -> None:
    feature = torch.zeros(0, 3, requires_grad=True)
    value = hint(Adapter((3,), (5,))(feature), torch.zeros(0, 5))
    value.backward()
    assert value.item() == 0


@pytest.mark.parametrize(
    ("student", "teacher"), [((), (3,)), ((3,), (4, 5)), ((2, 3, 4, 5), (3,)), ((3, 0, 4), (3, 4, 4))]
)
def test_features_of_another_rank_are_refused(student: tuple[int, ...], teacher: tuple[int, ...]) -> None:
    with pytest.raises(UsageError, match=r"vectors \[D\] and maps \[D, H, W\]"):
        Adapter(student, teacher)


@pytest.mark.parametrize(
    ("student", "teacher"),
    [((2, 3), (2, 4)), ((2, 3), (1, 3)), ((2, 3, 4, 4), (2, 3)), ((2, 3, 4, 4), (2, 3, 2, 4)), ((2, 3), (2, 3, 4))],
)
def test_maps_that_no_adapter_matched_are_refused(student: tuple[int, ...], teacher: tuple[int, ...]) -> None:
    with pytest.raises(UsageError, match="put an Adapter"):
        hint(torch.zeros(student), torch.zeros(teacher))
