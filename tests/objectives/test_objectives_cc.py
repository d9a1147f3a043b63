"""Correlation congruence by hand, and its series against the kernel that it stands for."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from kdcache.errors import UsageError
from kdcache.objectives.cc import cc

ACROSS = torch.tensor([[2.0, 0.0], [0.0, 5.0]])  # a cosine of 0
ALONG = torch.tensor([[1.0], [3.0]])  # a cosine of 1


def test_by_hand() -> None:
    """Of 4 entries the 2 outside the diagonal differ."""
    assert cc(ACROSS, ALONG, kernel="bilinear").item() == pytest.approx(2 * 1 / 4)
    first = math.exp(-0.8) * 0.8
    assert cc(ACROSS, ALONG, order=1).item() == pytest.approx(2 * first**2 / 4)
    second = math.exp(-0.8) * (0.8 + 0.8**2 / 2)
    assert cc(ACROSS, ALONG).item() == pytest.approx(2 * second**2 / 4)
    third = math.exp(-3) * (3 + 9 / 2 + 27 / 6)
    assert cc(ACROSS, ALONG, gamma=1.5, order=3).item() == pytest.approx(2 * third**2 / 4)


@pytest.mark.parametrize("gamma", [0.1, 0.4, 2.0])
def test_a_long_series_is_the_gaussian(gamma: float) -> None:
    generator = torch.Generator().manual_seed(1)
    student, teacher = torch.randn(6, 3, generator=generator), torch.randn(6, 5, generator=generator)
    kernels = []
    for feature in (student, teacher):
        rows = [row / row.norm() for row in feature.double()]
        kernels.append(
            torch.stack([torch.stack([torch.exp(-gamma * ((a - b) ** 2).sum()) for b in rows]) for a in rows])
        )
    expected = (kernels[0] - kernels[1]).square().mean().item()
    assert cc(student, teacher, gamma=gamma, order=40).item() == pytest.approx(expected, rel=1e-5)
    assert cc(student, teacher, gamma=gamma, order=1).item() != pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kernel": "cubic"}, 'kernel = \'cubic\' is not known; take "gaussian" or "bilinear"'),
        ({"gamma": 0.0}, "gamma = 0.0: .* above 0"),
        ({"gamma": math.nan}, "gamma = nan"),
        ({"gamma": math.inf}, "gamma = inf"),
        ({"order": 0}, "order = 0: .* 1 to 100"),
        ({"order": 101}, "order = 101"),
    ],
)
def test_options_that_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=f"cc: {message}"):
        cc(ACROSS, ALONG, **options)
