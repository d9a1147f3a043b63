"""Where features of different shape meet: tokens, and vectors that are made of maps and tokens."""

from __future__ import annotations

import pytest
import torch

from kdcache.errors import UsageError
from kdcache.objectives.adapters import Adapter
from kdcache.objectives.feature import Hint, hint
from kdcache.objectives.shapes import Shapes


def shapes(student: tuple[int, ...], teacher: tuple[int, ...]) -> Shapes:
    return Shapes((student,), (teacher,), torch.arange(4).numpy(), 3)


def test_tokens_as_sequences_and_as_rows_are_the_same() -> None:
    adapter = Adapter((5, 4), (5, 6))
    tokens, teacher = torch.randn(3, 5, 4), torch.randn(3, 5, 6)
    assert adapter(tokens).shape == (3, 5, 6)
    rows = hint(adapter(tokens.flatten(0, 1)), teacher.flatten(0, 1))
    torch.testing.assert_close(hint(adapter(tokens), teacher), rows)


@pytest.mark.parametrize("student", [(4, 3, 5), (7, 4)])
def test_attention_pool_starts_as_the_mean_and_learns(student: tuple[int, ...]) -> None:
    plain, learnt = Adapter(student, (6,)), Adapter(student, (6,), pool="attention")
    learnt.project.load_state_dict(plain.project.state_dict())
    feature = torch.randn(2, *student)
    torch.testing.assert_close(learnt(feature), plain(feature))
    hint(learnt(feature), torch.randn(2, 6)).backward()
    assert learnt.query is not None
    assert learnt.query.grad is not None
    assert learnt.query.grad.any()


def test_attention_pool_can_pick_one_place() -> None:
    adapter = Adapter((3, 2), (2,), pool="attention")
    tokens = torch.tensor([[[1.0, 5.0], [2.0, 6.0], [3.0, 7.0]]])
    with torch.no_grad():
        assert adapter.query is not None
        adapter.query.copy_(torch.tensor([1000.0, 0.0]))  # the token with the largest first channel
        adapter.project.load_state_dict({"weight": torch.eye(2), "bias": torch.zeros(2)})
        torch.testing.assert_close(adapter(tokens), torch.tensor([[3.0, 7.0]]))


def test_hint_of_its_own_adapter() -> None:
    loss = Hint(shapes((4, 6, 6), (3, 2, 2)))
    feature, teacher = torch.randn(2, 4, 6, 6), torch.randn(2, 3, 2, 2)
    torch.testing.assert_close(loss(feature, teacher), hint(loss.adapter(feature), teacher))


@pytest.mark.parametrize(
    ("student", "teacher", "said"),
    [
        ((5, 4), (6, 4), "5 tokens and the teacher's 6"),
        ((5, 4), (4, 2, 2), r"tokens \[L, D\] with tokens"),
        ((4, 2, 2), (5, 4), r"tokens \[L, D\] with tokens"),
        ((1, 2, 3, 4), (4,), "the student's feature has shape"),
    ],
)
def test_pairs_that_do_not_meet(student: tuple[int, ...], teacher: tuple[int, ...], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        Adapter(student, teacher)


@pytest.mark.parametrize(("student", "teacher"), [((4,), (6,)), ((4, 2, 2), (4, 2, 2)), ((5, 4), (5, 4))])
def test_attention_pool_where_nothing_is_pooled(student: tuple[int, ...], teacher: tuple[int, ...]) -> None:
    with pytest.raises(UsageError, match="leave it out"):
        Adapter(student, teacher, pool="attention")


@pytest.mark.parametrize(("student", "teacher"), [((2, 5, 4), (2, 6, 4)), ((10, 4), (2, 5, 4)), ((2, 5, 4), (2, 4))])
def test_tokens_that_do_not_match(student: tuple[int, ...], teacher: tuple[int, ...]) -> None:
    with pytest.raises(UsageError, match="put an Adapter"):
        hint(torch.zeros(student), torch.zeros(teacher))
