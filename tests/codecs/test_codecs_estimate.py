from __future__ import annotations

import pytest
import torch
from codec_contract import logits
from torch import Tensor

from kdcache.codecs.estimate import CHUNK, by_rows, drawn, masses
from kdcache.errors import UsageError


def test_masses_are_whole_numbers_whose_sums_are_exact_in_any_order() -> None:
    found = masses(logits(50, 300), 2.0)
    assert found.dtype == torch.float64
    assert torch.equal(found, found.round())
    forward, backward = found.cumsum(1)[:, -1], found.flip(1).cumsum(1)[:, -1]
    assert torch.equal(forward, backward)
    assert (forward < 2**53).all()
    exact = (logits(50, 300).double() / 2).softmax(1)
    assert ((found / 2**52 - exact).abs() <= 1e-5 * exact + 2**-52).all()


def test_no_logits_are_too_large_or_too_far_apart() -> None:
    values = torch.tensor([[3.4e38, 0.0, -3.4e38], [-3.4e38, -3.4e38, -3.4e38]])
    for temperature in (0.05, 1.0, 1000.0):
        found = masses(values, temperature)
        assert found[0].tolist() == [2.0**52, 0.0, 0.0]
        assert found[1].tolist() == pytest.approx([2**52 / 3] * 3, rel=1e-6)


def test_drawn_by_hand() -> None:
    """Masses 2, 0, 6 of 8: points below 1/4 are class 0, others class 2; class 1 is never drawn."""
    weights = torch.tensor([[2.0, 0.0, 6.0], [0.0, 0.0, 0.0]], dtype=torch.float64)
    points = torch.tensor([[0.0, 0.24, 0.25, 0.9999999999999999], [0.0, 0.3, 0.6, 0.9]], dtype=torch.float64)
    assert drawn(weights, points).tolist() == [[0, 0, 2, 2], [0, 0, 0, 0]]


def test_rows_are_taken_few_at_a_time() -> None:
    seen = []

    def encode(rows: Tensor, keys: Tensor) -> dict[str, Tensor]:
        seen.append(len(rows))
        return {"": torch.cat([rows[:, :1], keys[:, None].float()], 1)}

    classes = CHUNK // 3
    values = torch.arange(8.0).reshape(2, 4)[:, :, None].expand(2, 4, classes)
    found = by_rows(values, torch.arange(8).reshape(2, 4) * 10, encode)[""]
    assert seen == [3, 3, 2]
    assert found[..., 0].tolist() == [[0.0, 1.0, 2.0, 3.0], [4.0, 5.0, 6.0, 7.0]]
    assert found[..., 1].tolist() == [[0.0, 10.0, 20.0, 30.0], [40.0, 50.0, 60.0, 70.0]]


def test_keys_are_asked_for() -> None:
    with pytest.raises(UsageError, match="needs the rows' keys"):
        by_rows(torch.zeros(2, 3), None, lambda rows, keys: {})
    with pytest.raises(UsageError, match=r"keys are \[2, 3\] and the rows \[2\]"):
        by_rows(torch.zeros(2, 3), torch.zeros(2, 3), lambda rows, keys: {})
