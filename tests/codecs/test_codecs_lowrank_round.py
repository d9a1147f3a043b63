from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from codec_contract import logits
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from kdcache.arrays import Array
from kdcache.codecs import fidelity, lowrank, lowrank_round
from kdcache.codecs.lowrank_round import joint_codes, level, metric, nearest

TEMPERATURES = (1.0, 2.0, 4.0)


def spread_out(rows: int, seed: int = 0) -> Tensor:
    """Logits float32 [rows, 60] of nearly as many dimensions, with the largest probability about a half."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, 60, generator=generator) * 0.98 ** torch.arange(60) * 2.5


def dense_metric(row: Tensor, temperatures: tuple[float, ...]) -> Tensor:
    """The metric of one row, float64 [C, C], as the formula says it."""
    classes = len(row)
    found = torch.zeros(classes, classes, dtype=torch.float64)
    for temperature in temperatures:
        p = torch.softmax(row / temperature, 0)
        ridge = lowrank_round.RIDGE / classes * torch.eye(classes)
        found += (torch.diag(p) - torch.outer(p, p) + ridge) / temperature
    return found


def axes(rank: int, classes: int) -> Tensor:
    vectors = torch.randn(classes, rank, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    return torch.linalg.qr(vectors - vectors.mean(0))[0].T


@pytest.mark.parametrize("classes", [20, 90])
def test_metric_is_that_of_the_losses(classes: int) -> None:
    """With 90 classes only 64 are exact: those below them have equal logits here, so that nothing is lost."""
    rows, basis = logits(4, classes).double() * 0.3, axes(7, classes)
    order = rows.argsort(1, descending=True)
    rows = rows.scatter(1, order[:, 64:], -9.0)
    wanted = logits(4, classes, seed=3).double()
    wanted -= wanted.mean(1, keepdim=True)
    square, linear = metric(rows, wanted, basis, TEMPERATURES)
    for i, row in enumerate(rows):
        exact = dense_metric(row, TEMPERATURES)
        np.testing.assert_allclose(square[i], basis @ exact @ basis.T, atol=1e-10)
        np.testing.assert_allclose(linear[i], basis @ exact @ wanted[i], atol=1e-10)


def test_metric_is_the_divergence_to_second_order() -> None:
    row, step = logits(1, 12).double()[0] * 0.3, logits(1, 12, seed=4).double()[0] * 1e-4
    for temperature in TEMPERATURES:
        first, second = (torch.log_softmax(z / temperature, 0) for z in (row, row + step))
        divergence = float((first.exp() * (first - second)).sum())
        ridge = lowrank_round.RIDGE / 12 * step @ step
        quadratic = float(step @ dense_metric(row, (temperature,)) @ step * temperature - ridge) / 2 / temperature**2
        assert quadratic == pytest.approx(divergence, rel=1e-2)


def small() -> tuple[Tensor, Tensor, tuple[Tensor, Tensor, Tensor]]:
    basis = axes(4, 12)
    levels = (torch.tensor([1.0, 0.9, 1.1, 1.3]).double(), torch.tensor([3, 2, 2, 1]), torch.zeros(4).double())
    return logits(300, 12).double() * 0.4, basis, levels


def costs(rows: Tensor, basis: Tensor, values: Tensor) -> Tensor:
    """[B, n] of values [B, n, r]."""
    wanted = rows - rows.mean(1, keepdim=True)
    exact = torch.stack([dense_metric(row, TEMPERATURES) for row in rows])
    error = values @ basis - wanted.unsqueeze(1)
    return torch.einsum("bnc,bcd,bnd->bn", error, exact, error)


def test_joint_codes_are_near_the_best_of_all() -> None:
    """Against every one of 256 combinations: the best in most rows, and never far behind; nearest codes are."""
    rows, basis, levels = small()
    choices = torch.tensor(list(itertools.product(range(8), range(4), range(4), range(2)))).double()
    best = costs(rows, basis, level(choices, *levels).expand(len(rows), -1, -1)).amin(1)
    mean = torch.zeros(12).double()
    joint = costs(rows, basis, level(joint_codes(rows, basis, mean, levels, TEMPERATURES), *levels)[:, None])[:, 0]
    alone = nearest((rows - rows.mean(1, keepdim=True)) @ basis.T, *levels)
    plain = costs(rows, basis, level(alone, *levels)[:, None])[:, 0]
    assert (joint >= best - 1e-9).all()
    assert (joint <= best + 1e-9).double().mean() > 0.7
    assert joint.mean() < 1.1 * best.mean()
    assert joint.mean() < 0.9 * plain.mean()


def test_no_code_can_be_bettered_once_converged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lowrank_round, "PASSES", 30)
    rows, basis, levels = small()
    codes = joint_codes(rows, basis, torch.zeros(12).double(), levels, TEMPERATURES)
    found = costs(rows, basis, level(codes, *levels)[:, None])[:, 0]
    for j, move in itertools.product(range(4), (-1, 1)):
        moved = codes.clone()
        moved[:, j] = (moved[:, j] + move).clamp(torch.zeros(()), 2.0 ** levels[1][j] - 1)
        assert (costs(rows, basis, level(moved, *levels)[:, None])[:, 0] >= found - 1e-9).all()


def test_joint_rounding_halves_the_divergence() -> None:
    """Against each component rounded to its nearest level, at T = 1, with the same tables."""
    array, pilot, values = Array("float32", (60,)), spread_out(512, seed=1), spread_out(300)
    tables = {name: torch.from_numpy(table) for name, table in lowrank.fit(pilot, {"bytes": 24}).items()}
    decoded = lowrank.decode(lowrank.encode(values, {"bytes": 24}, tables), array, {"bytes": 24}, tables)
    levels = (tables["step"], tables["bits"].int(), tables["curve"])
    centred = values - values.mean(1, keepdim=True) - tables["mean"]
    alone = level(nearest(centred @ tables["basis"].T, *levels), *levels) @ tables["basis"] + tables["mean"]
    assert fidelity(values, decoded)["kl"]["1"] < 0.5 * fidelity(values, alone)["kl"]["1"]


def test_components_past_the_joint_ones_are_rounded_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """The joint ones make up for some of their error: with the same tables KL at T = 1 falls the more are joint."""
    array, pilot, values = Array("float32", (60,)), spread_out(512, seed=1), spread_out(200)
    tables = {name: torch.from_numpy(table) for name, table in lowrank.fit(pilot, {"bytes": 24}).items()}
    found = []
    for joint in (1, 10, 30, 128):
        monkeypatch.setattr(lowrank_round, "JOINT", joint)
        decoded = lowrank.decode(lowrank.encode(values, {"bytes": 24}, tables), array, {"bytes": 24}, tables)
        found.append(fidelity(values, decoded)["kl"]["1"])
    assert found == sorted(found, reverse=True)
    assert found[0] > 2 * found[-1]


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 16), st.floats(0, 3.5)), min_size=1, max_size=8), st.integers(0, 10_000))
def test_a_level_is_nearest_to_itself(components: list[tuple[int, float]], seed: int) -> None:
    bits = torch.tensor([count for count, _ in components])
    curve = torch.tensor([bend for _, bend in components], dtype=torch.float64) / 2.0 ** (bits - 1)
    step = torch.full_like(curve, 0.37)
    draw = torch.rand(50, len(bits), dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    codes = (draw * 2.0**bits).floor()
    assert torch.equal(nearest(level(codes, step, bits, curve), step, bits, curve), codes)


@pytest.mark.parametrize("scale", [0.0, 1e-30, 1e3, 1e30])
def test_any_finite_logits_get_codes_in_range(scale: float) -> None:
    rows, basis, levels = small()
    codes = joint_codes(rows * scale, basis, torch.zeros(12).double(), levels, (0.1, 1.0, 1000.0))
    assert ((codes >= 0) & (codes < 2.0 ** levels[1])).all()
    assert torch.equal(codes, codes.round())
