"""Attention transfer, from whole maps and from what a store keeps of them."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from kdcache.errors import UsageError
from kdcache.objectives.attention import attention
from kdcache.teacher.reductions import reduced


def test_by_hand() -> None:
    student, teacher = torch.tensor([[[[3.0, 4.0]]]]), torch.tensor([[[[1.0, 0.0]], [[-1.0, 0.0]]]])
    # Q_s = (9, 16) / sqrt(337), Q_t = (1, 0)
    assert attention(student, teacher).item() == pytest.approx(1 - 9 / math.sqrt(337))
    assert attention(student, teacher, paper=True).item() == pytest.approx(math.sqrt(2 - 18 / math.sqrt(337)))
    assert attention(student, teacher, power=1).item() == pytest.approx(1 - 3 / 5)


@pytest.mark.parametrize("size", [(4, 4), (8, 8), (3, 5), (2, 2)])
@pytest.mark.parametrize("paper", [False, True])
def test_a_stored_attention_gives_what_the_whole_map_gives(size: tuple[int, int], paper: bool) -> None:
    student, teacher = torch.randn(3, 5, 4, 4), torch.randn(3, 7, *size)
    stored = reduced(teacher, {"of": [7, *size], "attention": True}, {})
    assert stored.shape == (3, *size)
    torch.testing.assert_close(attention(student, stored, paper=paper), attention(student, teacher, paper=paper))


def test_a_stored_pooled_attention_gives_what_the_whole_map_gives_to_a_student_of_that_size() -> None:
    student, teacher = torch.randn(3, 5, 4, 4), torch.randn(3, 7, 8, 8)
    stored = reduced(teacher, {"of": [7, 8, 8], "attention": True, "pool": 4}, {})
    torch.testing.assert_close(attention(student, stored), attention(student, teacher))


def test_what_does_not_matter() -> None:
    student, teacher = torch.randn(3, 5, 4, 4), torch.randn(3, 7, 4, 4)
    value = attention(student, teacher)
    torch.testing.assert_close(attention(1e-6 * student, 1e4 * teacher), value)
    torch.testing.assert_close(attention(-student, teacher.flip(1)), value)
    torch.testing.assert_close(attention(student.repeat(1, 2, 1, 1), teacher), value)
    assert attention(student, 3 * student).item() == pytest.approx(0, abs=1e-12)


def test_opposite_signs_cancel_only_where_features_are_pooled() -> None:
    student, teacher = torch.ones(1, 1, 1, 2), torch.tensor([[[[1.0, -1.0, 1.0, 1.0]]]])
    assert attention(student, teacher).item() == pytest.approx(0, abs=1e-12)
    assert attention(student, teacher, pooling="feature").item() == pytest.approx(1 - 1 / math.sqrt(2))


def test_a_map_of_zeros_has_no_attention_and_a_finite_gradient() -> None:
    student = torch.zeros(1, 2, 2, 2, requires_grad=True)
    value = attention(student, torch.ones(1, 2, 2, 2))
    value.backward()
    assert value.item() == pytest.approx(1 / 4)
    assert student.grad is not None
    assert not student.grad.any()


@pytest.mark.parametrize(
    ("student", "teacher", "options", "said"),
    [
        ((2, 3), (2, 3), {}, "pass maps"),
        ((2, 3, 4, 4), (1, 3, 4, 4), {}, "of the same rows"),
        ((2, 3, 4, 4), (2, 3), {}, "pass maps"),
        ((2, 3, 4, 4), (2, 4, 4), {"power": 3.0}, "keeps the teacher's attention at power 2"),
        ((2, 3, 4, 4), (2, 8, 8), {"pooling": "feature"}, "dump the whole map"),
        ((2, 3, 4, 4), (2, 3, 4, 4), {"power": 0.5}, "1 or more"),
        ((2, 3, 4, 4), (2, 3, 4, 4), {"power": math.nan}, "1 or more"),
    ],
)
def test_what_is_refused(
    student: tuple[int, ...], teacher: tuple[int, ...], options: dict[str, Any], said: str
) -> None:
    with pytest.raises(UsageError, match=said):
        attention(torch.ones(student), torch.ones(teacher), **options)
