"""Losses chunk by chunk from hidden states: the same numbers as all at once, and never more than one chunk's logits."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from objectives_reference import head_inputs, sparse, sweep
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from kdcache.errors import UsageError
from kdcache.objectives import chunked, chunked_logits, kd
from kdcache.objectives.fused import default_chunk_rows


def teacher(rows: int, classes: int) -> np.ndarray:
    return np.random.default_rng(9).normal(0, 2, (rows, classes))


class TestChunked:
    @given(st.integers(1, 7), st.integers(1, 4), st.integers(2, 9), st.integers(1, 9), st.booleans(), st.data())
    @sweep
    def test_as_all_at_once(
        self, rows: int, width: int, classes: int, chunk: int, with_bias: bool, data: st.DataObject
    ) -> None:
        hidden, weight, bias = head_inputs(rows, width, classes, data.draw(st.integers(0, 999)))
        given_bias = bias if with_bias else None
        targets = sparse(teacher(rows, classes), 1)
        asked = [tensor for tensor in (hidden, weight, given_bias) if tensor is not None]
        whole = 3 * kd(F.linear(hidden, weight, given_bias), targets, temperature=2.0)
        parts = 3 * chunked(
            hidden, weight, given_bias, lambda logits, part: kd(logits, targets[part], temperature=2.0), chunk
        )
        torch.testing.assert_close(parts, whole)
        torch.testing.assert_close(torch.autograd.grad(parts, asked), torch.autograd.grad(whole, asked))

    def test_every_row_is_seen_once_in_order(self) -> None:
        hidden, weight, _ = head_inputs(7, 2, 3)
        seen: list[int] = []

        def loss(logits: Tensor, rows: slice) -> Tensor:
            seen.extend(range(7)[rows])
            assert len(logits) == len(range(7)[rows]) <= 3
            torch.testing.assert_close(logits, hidden[rows] @ weight.T)
            return logits.sum() / len(logits)

        chunked(hidden, weight, None, loss, 3)
        assert seen == list(range(7))

    def test_no_rows(self) -> None:
        hidden, weight, bias = head_inputs(0, 3, 4)
        value = chunked(hidden, weight, bias, lambda logits, rows: logits.sum(), 2)
        value.backward()
        assert value.item() == 0
        assert hidden.grad is not None
        assert weight.grad is not None
        assert not weight.grad.any()

    @pytest.mark.parametrize("of", [0, 1, 2])
    def test_gradient_of_one_alone(self, of: int) -> None:
        tensors = head_inputs(5, 3, 4)
        for place, tensor in enumerate(tensors):
            tensor.requires_grad_(place == of)
        (found,) = torch.autograd.grad(
            chunked(*tensors, lambda logits, _: logits.square().sum(1).mean(), 2), tensors[of]
        )
        (expected,) = torch.autograd.grad(F.linear(*tensors).square().sum(1).mean(), tensors[of])
        torch.testing.assert_close(found, expected)

    def test_a_constant_loss(self) -> None:
        hidden, weight, bias = head_inputs(4, 3, 5)
        value = chunked(hidden, weight, bias, lambda logits, _: logits.new_tensor(2.5), 3)
        value.backward()
        assert value.item() == 2.5
        assert hidden.grad is not None
        assert not hidden.grad.any()

    def test_used_twice_and_differentiated_twice(self) -> None:
        hidden, weight, bias = head_inputs(5, 3, 4)

        def loss(logits: Tensor, rows: slice) -> Tensor:
            return logits.logsumexp(1).mean()

        value = chunked(hidden, weight, bias, loss, 2) + 2 * chunked(hidden, weight, None, loss, 3)
        expected = F.linear(hidden, weight, bias).logsumexp(1).mean() + 2 * F.linear(hidden, weight).logsumexp(1).mean()
        first = torch.autograd.grad(value, (hidden, weight, bias), retain_graph=True)
        again = torch.autograd.grad(value, (hidden, weight, bias))
        torch.testing.assert_close(first, torch.autograd.grad(expected, (hidden, weight, bias)))
        torch.testing.assert_close(first, again, rtol=0, atol=0)

    def test_the_head_may_be_the_embedding(self) -> None:
        _, weight, _ = head_inputs(1, 3, 8)
        tokens, label = torch.tensor([0, 5, 5, 2]), torch.tensor([1, 2, 3, 4])
        found = chunked(weight[tokens], weight, None, lambda logits, rows: F.cross_entropy(logits, label[rows]), 3)
        expected = F.cross_entropy(weight[tokens] @ weight.T, label)
        torch.testing.assert_close(torch.autograd.grad(found, weight), torch.autograd.grad(expected, weight))

    @pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
    def test_without_gradients(self, context: Any) -> None:
        hidden, weight, bias = head_inputs(5, 3, 4)
        with context():
            value = chunked(hidden, weight, bias, lambda logits, _: logits.logsumexp(1).mean(), 2)
            assert value.item() == pytest.approx(F.linear(hidden, weight, bias).logsumexp(1).mean().item())
        assert not value.requires_grad

    def test_result_scales_the_gradient(self) -> None:
        """T^2 outside multiplies the gradient, not only the number that is reported."""
        hidden, weight, bias = head_inputs(5, 3, 4)
        targets = torch.from_numpy(teacher(5, 4))
        inside, outside = (
            chunked(hidden, weight, bias, lambda logits, rows, f=factor: f * kd(logits / 4, targets[rows] / 4), 2)
            * other
            for factor, other in ((16.0, 1.0), (1.0, 16.0))
        )
        whole = kd(F.linear(hidden, weight, bias), targets, temperature=4.0)
        expected = torch.autograd.grad(whole, (hidden, weight, bias))
        for value in (inside, outside):
            torch.testing.assert_close(value, whole)
            torch.testing.assert_close(torch.autograd.grad(value, (hidden, weight, bias)), expected)

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_autocast(self, dtype: torch.dtype) -> None:
        hidden, weight, bias = head_inputs(9, 16, 12, dtype=torch.float32)
        targets = torch.from_numpy(teacher(9, 12)).float()

        def loss(logits: Tensor, rows: slice) -> Tensor:
            assert logits.dtype == torch.float32
            assert not torch.is_autocast_enabled("cpu")
            return kd(logits, targets[rows])

        with torch.autocast("cpu", dtype=dtype):
            found = chunked(hidden, weight, bias, loss, 4)
            logits = F.linear(hidden, weight, bias)
            assert logits.dtype == dtype
            expected = kd(logits, targets)
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)
        ours, theirs = (torch.autograd.grad(value, (hidden, weight, bias)) for value in (found, expected))
        for one, other in zip(ours, theirs, strict=True):
            assert one.dtype == torch.float32
            assert (one - other).norm() < 0.02 * other.norm()

    def test_half_precision_does_not_underflow(self) -> None:
        """The mean's gradients are below float16's smallest number until the loss is scaled, which comes afterwards."""
        hidden, weight, _ = head_inputs(4096, 4, 8, dtype=torch.float32)
        scale = 2.0**16

        def loss(logits: Tensor, rows: slice) -> Tensor:
            return 1e-5 * logits.logsumexp(1).mean()

        half = hidden.detach().half().requires_grad_()
        found = torch.autograd.grad(chunked(half, weight.detach().half(), None, loss, 512) * scale, half)[0]
        (expected,) = torch.autograd.grad(1e-5 * (hidden @ weight.T).logsumexp(1).mean() * scale, hidden)
        assert (expected / scale).half().count_nonzero() < expected.numel() / 2
        assert (found.float() - expected).norm() < 0.05 * expected.norm()

    def test_no_tensor_is_larger_than_a_chunk(self) -> None:
        class Largest(TorchDispatchMode):
            found = 0

            def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
                result = func(*args, **(kwargs or {}))
                sizes = [leaf.numel() for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
                self.found = max([self.found, *sizes])
                return result

        rows, width, classes, chunk = 64, 4, 1000, 8
        hidden, weight, bias = head_inputs(rows, width, classes, dtype=torch.float32)
        targets = sparse(teacher(rows, classes), 5)
        with Largest() as watch:
            loss = chunked(hidden, weight, bias, lambda logits, part: kd(logits, targets[part]), chunk)
            loss.backward()
        assert watch.found == chunk * classes
        with Largest() as watch:
            kd(F.linear(hidden, weight, bias), targets).backward()
        assert watch.found == rows * classes

    def test_refused(self) -> None:
        hidden, weight, bias = head_inputs(5, 3, 4)
        with pytest.raises(UsageError, match=r"chunk_rows = 0: give 1 or more, or None for 1048576"):
            chunked(hidden, weight, bias, lambda logits, _: logits.sum(), 0)
        with pytest.raises(UsageError, match=r"hidden states \[5, 3\] and a head's weight \[3, 4\] do not fit"):
            chunked(hidden, weight.T, None, lambda logits, _: logits.sum())
        with pytest.raises(UsageError, match=r"outputs are \[5\]"):
            chunked_logits(hidden[:, 0], lambda logits, _: logits.sum())

    def test_default_chunk(self) -> None:
        assert default_chunk_rows(32768) == 128
        assert default_chunk_rows(2**40) == 1


class TestChunkedLogits:
    @pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
    def test_as_all_at_once(self, dtype: torch.dtype) -> None:
        student = torch.randn(7, 5, generator=torch.Generator().manual_seed(3)).to(dtype).requires_grad_()
        targets = torch.from_numpy(teacher(7, 5))
        found = chunked_logits(student, lambda logits, rows: kd(logits, targets[rows], temperature=2.0), 3)
        expected = kd(student, targets, temperature=2.0)
        torch.testing.assert_close(found.double(), expected.double())
        ours, theirs = (torch.autograd.grad(value, student)[0] for value in (found, expected))
        assert ours.dtype == dtype
        torch.testing.assert_close(ours, theirs, rtol=0.02 if dtype == torch.bfloat16 else 1e-4, atol=1e-4)

    def test_no_rows(self) -> None:
        student = torch.zeros(0, 5, requires_grad=True)
        value = chunked_logits(student, lambda logits, _: logits.sum())
        value.backward()
        assert value.item() == 0
        assert student.grad is not None
