"""Metrics on values by hand and against scikit-learn."""

from __future__ import annotations

import math

import pytest
import torch
from judged_rows import rows

from kdcache.errors import UsageError
from kdcache.metrics.regression import mae, mse, r2


def test_by_hand() -> None:
    """Off by 1, -3 and 0; the targets 0, 3 and 3 of one column each vary by 2.25 * 2 about 1.5; one is not known."""
    judged = rows(
        {"logits": torch.tensor([[1.0, 5.0], [0.0, 3.0]])}, target=torch.tensor([[0.0, math.nan], [3.0, 3.0]])
    )
    assert mse(judged) == {"mse": pytest.approx(10 / 3)}
    assert mae(judged) == {"mae": pytest.approx(4 / 3)}
    assert r2(judged) == {"r2": pytest.approx(1 - 10 / 4.5)}


def test_r2_is_scikit_learns() -> None:
    r2_score = pytest.importorskip("sklearn.metrics").r2_score
    generator = torch.Generator().manual_seed(0)
    target = torch.randn(50, 3, generator=generator) * torch.tensor([1.0, 5.0, 0.1])
    output = target + torch.randn(50, 3, generator=generator)
    expected = r2_score(target.numpy(), output.numpy(), multioutput="variance_weighted")
    assert r2(rows({"logits": output}, target=target))["r2"] == pytest.approx(expected, rel=1e-5)


def test_other_shapes_of_one_size() -> None:
    assert mae(rows({"logits": torch.ones(2, 4)}, target=torch.zeros(2, 2, 2))) == {"mae": 1.0}
    assert mae(rows({"logits": torch.ones(2, 1)}, target=torch.zeros(2))) == {"mae": 1.0}


def test_what_cannot_be_judged() -> None:
    with pytest.raises(UsageError, match=r"output is \[2, 3\] and the target \[2, 4\]"):
        mse(rows({"logits": torch.ones(2, 3)}, target=torch.zeros(2, 4)))
    with pytest.raises(UsageError, match="none of the 2 evaluation rows has a known target"):
        mae(rows({"logits": torch.ones(2, 3)}, target=torch.full((2, 3), math.nan)))
    with pytest.raises(UsageError, match="do not vary"):
        r2(rows({"logits": torch.ones(2, 3)}, target=torch.zeros(2, 3)))
