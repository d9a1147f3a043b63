"""No loss ever makes a tensor of B x C values out of a sparse teacher."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from kdcache.codecs import SparseLogits
from kdcache.objectives import hard_label, kd, soft_ce


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
