"""DeiT's two heads: values by hand, which head learns from what, and what is refused."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from objectives_reference import drawn, sparse

from kdcache.errors import UsageError
from kdcache.objectives import ce, hard_label, kd
from kdcache.objectives.deit import deit

TEACHER = torch.tensor([[0.75, 0.25]]).log()
LABEL = torch.tensor([1])
ENTROPY = -0.75 * math.log(0.75) - 0.25 * math.log(0.25)


class TestDeit:
    def test_by_hand(self) -> None:
        heads = torch.tensor([[0.8, 0.2]]).log(), torch.tensor([[0.5, 0.5]]).log()
        hard = deit(*heads, TEACHER, LABEL)
        assert hard.item() == pytest.approx((math.log(5) + math.log(2)) / 2)
        soft = deit(*heads, TEACHER, LABEL, kind="soft", alpha=0.1)
        assert soft.item() == pytest.approx(0.9 * math.log(5) + 0.1 * (math.log(2) - ENTROPY))

    @pytest.mark.parametrize("kind", ["hard", "soft"])
    def test_each_head_has_its_own_teacher(self, kind: Any) -> None:
        ours, distilled = torch.zeros(1, 2, requires_grad=True), torch.zeros(1, 2, requires_grad=True)
        deit(ours, distilled, TEACHER, LABEL, kind=kind, alpha=0.25).backward()
        assert ours.grad is not None
        assert distilled.grad is not None
        torch.testing.assert_close(ours.grad, 0.75 * torch.tensor([[0.5, -0.5]]))
        p = torch.tensor([[1.0, 0.0]]) if kind == "hard" else torch.tensor([[0.75, 0.25]])
        torch.testing.assert_close(distilled.grad, 0.25 * (0.5 - p))

    def test_the_soft_part_is_a_mean_over_rows_and_a_sum_over_classes(self) -> None:
        """DeiT's own code divides by the classes as well; the share of the docstring makes up for that."""
        generator = torch.Generator().manual_seed(0)
        ours, distilled, teacher = (torch.randn(4, 10, generator=generator) for _ in range(3))
        label, alpha, t = torch.tensor([1, 2, 3, 4]), 0.5, 3.0
        divided = torch.nn.functional.kl_div(
            (distilled / t).log_softmax(1), (teacher / t).log_softmax(1), reduction="sum", log_target=True
        )
        theirs = (1 - alpha) * ce(ours, label) + alpha * t * t * divided / distilled.numel()
        share = alpha / (10 * (1 - alpha) + alpha)
        same = deit(ours, distilled, teacher, label, kind="soft", alpha=share, temperature=t)
        assert same.item() * (1 - alpha) / (1 - share) == pytest.approx(theirs.item(), rel=1e-5)

    def test_unlabelled_rows_teach_the_distillation_head(self) -> None:
        zeros, teacher = torch.zeros(2, 2), TEACHER.repeat(2, 1)
        value = deit(zeros, zeros, teacher, torch.tensor([-1, -1]), alpha=0.5)
        assert value.item() == pytest.approx(math.log(2) / 2)

    def test_sparse_and_drawn_targets(self) -> None:
        generator = torch.Generator().manual_seed(1)
        ours, distilled, teacher = (torch.randn(3, 6, generator=generator) for _ in range(3))
        label = torch.tensor([0, 1, 2])
        kept = sparse(teacher.double().numpy(), 2)
        draws, _ = drawn(teacher.double().numpy(), 2.0, 30, np.random.default_rng(0))
        for targets in (kept, draws):
            hard = deit(ours, distilled, targets, label, alpha=1.0)
            assert hard.item() == pytest.approx(hard_label(distilled, targets).item())
            soft = deit(ours, distilled, targets, label, kind="soft", alpha=1.0, temperature=2.0)
            assert soft.item() == pytest.approx(kd(distilled, targets, temperature=2.0).item())

    def test_refused(self) -> None:
        head = torch.zeros(1, 2)
        kind: Any = "medium"
        with pytest.raises(UsageError, match=r'kind = \'medium\': it is "hard" .* or "soft"'):
            deit(head, head, TEACHER, LABEL, kind=kind)
        for alpha in (-0.1, 1.5, math.nan):
            with pytest.raises(UsageError, match=r"alpha = .* from 0 to 1"):
                deit(head, head, TEACHER, LABEL, alpha=alpha)
        with pytest.raises(UsageError, match=r"class head gives \[1, 2\] and the distillation head \[1, 3\]"):
            deit(head, torch.zeros(1, 3), TEACHER, LABEL)
        with pytest.raises(UsageError, match="pass the batch's `label`"):
            deit(head, head, TEACHER, LABEL.float())
