from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from codec_contract import logits

from kdcache.codecs import lowrank_fit
from kdcache.codecs.lowrank_round import level


def test_bits_go_where_they_take_most_by_hand() -> None:
    """Of variances 16, 4, 1/2 the first bits take 10.19, 2.55, 0.32, the second of the first 3.93, its third 1.33."""
    assert lowrank_fit.share(torch.tensor([16.0, 4.0, 0.5], dtype=torch.float64), 4).tolist() == [3, 1, 0]
    assert lowrank_fit.share(torch.tensor([1.0, 1.0], dtype=torch.float64), 100).tolist() == [16, 16]


def test_one_bit_of_a_gaussian_stands_where_theory_says() -> None:
    values = torch.randn(20_000, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    bits = torch.tensor([1])
    step, curve = lowrank_fit.search(values, bits)
    outer = float(level(torch.ones(1, dtype=torch.float64), step, bits, curve)) / lowrank_fit.NARROWER
    assert outer == pytest.approx(math.sqrt(2 / math.pi), rel=0.08)  # Lloyd and Max: +-0.798


def test_levels_of_a_gaussian_lose_little_to_the_best_ones() -> None:
    """Max's table: 0.009497 at 4 bits, where even levels leave 0.01154."""
    values = torch.randn(20_000, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    bits = torch.tensor([4])
    step, curve = lowrank_fit.search(values, bits)
    levels = level(torch.arange(16, dtype=torch.float64), step / lowrank_fit.NARROWER, bits, curve)
    assert (levels.diff() > 0).all()
    error = (values - levels).abs().amin(1).square().mean()
    assert 0.0090 < float(error) < 0.0108


@pytest.mark.parametrize("rows", [600, 40])
def test_principal_axes_either_way(rows: int) -> None:
    """More rows than classes, and fewer: orthonormal, centred, with the variances that a float64 SVD finds."""
    values = logits(rows, 60).double()
    values -= values.mean(1, keepdim=True)
    values -= values.mean(0)
    basis, variance = lowrank_fit.principal(values, 20)
    assert len(basis) == 20
    np.testing.assert_allclose(basis @ basis.T, np.eye(20), atol=1e-8)
    np.testing.assert_allclose(basis.sum(1), 0.0, atol=1e-8)
    np.testing.assert_allclose((values @ basis.T).square().mean(0), variance, rtol=1e-6)
    np.testing.assert_allclose(torch.linalg.svdvals(values)[:20].square() / rows, variance, rtol=1e-6)


def test_all_bits_are_given_and_fine_levels_reach_beyond_the_pilot() -> None:
    """Rows twice as large as the pilot's: few bits clip them, as many as a row can hold do not."""
    pilot, others = logits(512, 20, seed=1), logits(400, 20) * 2
    clipped = []
    for room in (40, 300):
        tables = lowrank_fit.fitted(pilot, room)
        bits = tables["bits"].int()
        assert bits.sum() == min(room, 16 * len(bits))
        wanted = (others - others.mean(1, keepdim=True) - tables["mean"]) @ tables["basis"].T
        edge = level(2.0**bits - 1, tables["step"], bits, tables["curve"])
        clipped.append(float((wanted.abs() > edge).double().mean()))
    assert clipped[0] > 0.05
    assert clipped[1] < 1e-3
