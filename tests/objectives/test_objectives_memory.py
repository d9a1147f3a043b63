"""No loss ever makes a tensor of B x C values out of a sparse teacher."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from kdcache.codecs import SampledLogits, SparseLogits
from kdcache.objectives import dkd, hard_label, jsd, kd, mse_logits, reverse_kl, soft_ce


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
                if tensor.is_floating_point():  # which classes are there is no value of the teacher's
                    self.marked[id(tensor)] = tensor
        return result


class TestMemory:
    rows, classes, kept = 8, 50_000, 16

    def watched(self, loss: Callable[..., Tensor], sampled: bool = False) -> Watch:
        generator = torch.Generator().manual_seed(1)
        teacher, indices = torch.randn(self.rows, self.classes, generator=generator).log_softmax(1).topk(self.kept, 1)
        tail = torch.tensor([[-11.0, 1.0, -0.01]]).repeat(self.rows, 1)
        targets: SparseLogits | SampledLogits = SparseLogits(indices, teacher, tail, self.classes)
        marked = [teacher, tail]
        if sampled:
            marked = [teacher.softmax(1)]
            targets = SampledLogits(indices, marked[0], 1.0, self.classes)
        student = torch.randn(self.rows, self.classes, generator=generator, requires_grad=True)
        watch = Watch(marked, self.rows * self.classes)
        with watch:
            value = loss(student, targets)
        value.backward()
        assert value.isfinite()
        return watch

    @pytest.mark.parametrize("loss", [kd, soft_ce, hard_label, reverse_kl, jsd])
    def test_sparse_teacher_is_never_made_dense(self, loss: Callable[..., Tensor]) -> None:
        assert self.watched(loss).largest == self.rows * self.classes  # the student's own

    def test_nor_is_it_with_labels(self) -> None:
        label = torch.arange(self.rows) * 1000
        assert self.watched(lambda s, t: dkd(s, t, label)).largest == self.rows * self.classes
        assert self.watched(mse_logits).largest == self.rows * self.kept  # not even the student

    @pytest.mark.parametrize("loss", [kd, soft_ce, hard_label])
    def test_nor_are_draws(self, loss: Callable[..., Tensor]) -> None:
        assert self.watched(loss, sampled=True).largest == self.rows * self.classes

    @pytest.mark.parametrize("loss", [kd, soft_ce, reverse_kl, jsd])
    def test_only_the_students_own_logits_wait_for_the_backward_pass(self, loss: Callable[..., Tensor]) -> None:
        kept: list[Tensor] = []

        def keep(tensor: Tensor) -> Tensor:
            kept.append(tensor)
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            self.watched(loss)
        large = {tensor.data_ptr() for tensor in kept if tensor.numel() >= self.rows * self.classes}
        assert len(large) == 1

    def test_the_watch_would_see_it(self) -> None:
        def dense(student: Tensor, targets: SparseLogits) -> Tensor:
            return torch.zeros_like(student).scatter(1, targets.indices, targets.log_p.exp()).mul(student).sum()

        with pytest.raises(AssertionError, match="from the teacher"):
            self.watched(dense)
