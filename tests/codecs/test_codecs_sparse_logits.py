from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from kdcache.arrays import Array
from kdcache.codecs import SparseLogits, topk
from kdcache.errors import UsageError


def sparse(logits: Tensor, k: int, dtype: str = "float32", **more: Any) -> SparseLogits:
    array = Array("float32", (logits.shape[1],))
    configuration = topk.configure({"k": k, "dtype": dtype, **more}, array)
    return topk.decode(topk.encode(logits, configuration, {}), array, configuration, {})


def early(logits: Tensor, k: int, dtype: str = "float32") -> SparseLogits:
    """With the tail's mean, variance and log-sum-exp, as early stores have them."""
    return sparse(logits, k, dtype, **topk.EARLY)


SKETCHES = pytest.mark.parametrize("sparse", [sparse, early])


def heavy(rows: int, classes: int, seed: int = 0) -> Tensor:
    """Logits with one to a few high classes and a skewed rest."""
    generator = torch.Generator().manual_seed(seed)
    base = torch.randn(rows, classes, generator=generator) * 2
    return base + torch.rand(rows, classes, generator=generator).pow(8) * 10


def true_log_mass(logits: Tensor, targets: SparseLogits, temperature: float) -> Tensor:
    """The tail's log mass, from all logits, in float64."""
    log_p = torch.log_softmax(logits.double() / temperature, 1)
    return log_p.scatter(1, targets.indices, -math.inf).logsumexp(1)


def test_sketch_by_hand() -> None:
    # Two of four classes kept; the others' logits, relative to the log-partition, are -4 and -2.
    nodes = [0.0, 0.25, 0.5, 1.0]
    values = [math.log(math.exp(-4 * b) + math.exp(-2 * b)) for b in nodes]
    left = math.log((1 - math.exp(-4) - math.exp(-2)) / 2)
    targets = SparseLogits(
        torch.tensor([[1, 3]]), torch.tensor([[left, left]]), torch.tensor([values[:0:-1]]), 4, (1.0, 2.0, 4.0)
    )
    for temperature in (1.25, 3.0, 10.0):
        between = float(np.polyval(np.polyfit(nodes, values, 3), 1 / temperature))
        log_z = math.log(2 * math.exp(left / temperature) + math.exp(between))
        kept, mass = targets.log_probs(temperature)
        np.testing.assert_allclose(kept.numpy(), [[left / temperature - log_z] * 2], rtol=1e-5)
        np.testing.assert_allclose(mass.numpy(), [between - log_z], rtol=1e-5)
        np.testing.assert_allclose(targets.log_z(temperature).numpy(), [log_z], rtol=1e-5)
        exact = math.log(math.exp(-4 / temperature) + math.exp(-2 / temperature))
        assert between == pytest.approx(exact, abs=2e-3)


def test_sketch_of_early_stores_by_hand() -> None:
    # Two of four classes kept; the others' logits, relative to the log-partition, are -4 and -2.
    tail = [-3.0, 1.0, math.log(math.exp(-4) + math.exp(-2))]
    left = math.log((1 - math.exp(-4) - math.exp(-2)) / 2)
    targets = SparseLogits(torch.tensor([[1, 3]]), torch.tensor([[left, left]]), torch.tensor([tail]), 4)
    cubic = tail[2] - math.log(2) + 3 - 0.5
    at_half = math.log(2) - 1.5 + 0.125 + cubic / 8
    log_z = math.log(2 * math.exp(left / 2) + math.exp(at_half))
    kept, mass = targets.log_probs(2.0)
    np.testing.assert_allclose(kept.numpy(), [[left / 2 - log_z] * 2], rtol=1e-6)
    np.testing.assert_allclose(mass.numpy(), [at_half - log_z], rtol=1e-6)
    # ... which is near the truth, log((e^-2 + e^-1) / Z).
    exact = math.log(math.exp(-2) + math.exp(-1))
    assert at_half == pytest.approx(exact, abs=4e-3)


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 40), st.data(), st.integers(0, 10_000), st.floats(1, 1e6))
def test_rows_sum_to_one_and_bounds_hold(classes: int, data: st.DataObject, seed: int, temperature: float) -> None:
    k = data.draw(st.integers(1, classes))
    which = data.draw(st.sampled_from([sparse, early]))
    targets = which(heavy(5, classes, seed), k, data.draw(st.sampled_from(["float16", "float32"])))
    kept, mass = targets.log_probs(temperature)
    assert (kept <= 1e-6).all()
    assert (kept[:, :-1] >= kept[:, 1:]).all()
    np.testing.assert_allclose(kept.exp().sum(1) + mass.exp(), 1.0, atol=1e-5)


@SKETCHES
@pytest.mark.parametrize("temperature", [1.0, 1e5])
def test_exact_at_one_and_at_infinity(temperature: float, sparse: Any) -> None:
    logits = heavy(200, 100)
    targets = sparse(logits, 8)
    kept, mass = targets.log_probs(temperature)
    exact = torch.log_softmax(logits.double() / temperature, 1)
    np.testing.assert_allclose(kept, exact.gather(1, targets.indices), atol=2e-5)
    np.testing.assert_allclose(mass, true_log_mass(logits, targets, temperature), atol=2e-5)


@pytest.mark.parametrize("temperature", [1.0, 1.5, 2.0, 4.0, 7.0])
def test_exact_where_it_says_so(temperature: float) -> None:
    logits = heavy(100, 300)
    targets = sparse(logits, 8, temperatures=[1.5, 2, 4], anchor=7.0)
    exact = torch.log_softmax(logits.double() / temperature, 1)
    kept, mass = targets.log_probs(temperature)
    np.testing.assert_allclose(kept, exact.gather(1, targets.indices), atol=2e-5)
    np.testing.assert_allclose(mass, true_log_mass(logits, targets, temperature), atol=2e-5)


@pytest.mark.parametrize("temperature", [1.25, 3.0, 6.0, 20.0])
@pytest.mark.parametrize("classes", [100, 1000])
def test_better_than_a_uniform_tail_and_than_moments(temperature: float, classes: int) -> None:
    logits = heavy(200, classes)
    targets = sparse(logits, 8, "float16")
    truth = true_log_mass(logits, targets, temperature)
    error = (targets.log_probs(temperature)[1] - truth).abs().mean()
    assert error < 0.04
    if temperature < 6:  # above, both are within rounding of the truth
        assert error < (early(logits, 8, "float16").log_probs(temperature)[1] - truth).abs().mean() / 2
    assert targets.tail is not None
    log_n = targets.tail_log_count
    flat = log_n + (targets.tail[:, 0] - log_n) / temperature
    kept = (targets.log_p / temperature).logsumexp(1)
    uniform = (flat - torch.logaddexp(kept, flat) - truth).abs().mean()
    assert error < uniform / 3


@settings(max_examples=40, deadline=None)
@given(st.integers(3, 60), st.data(), st.integers(0, 10_000))
def test_no_tail_leaves_the_chords(classes: int, data: st.DataObject, seed: int) -> None:
    """Whatever was stored: the tail's log-partition is between those of the stored temperatures."""
    k = data.draw(st.integers(1, classes - 1))
    targets = sparse(heavy(4, classes, seed) * data.draw(st.sampled_from([0.1, 1.0, 30.0])), k)
    assert targets.tail is not None
    known = [(0.0, targets.tail_log_count)]
    known += [(0.25, targets.tail[:, 2]), (0.5, targets.tail[:, 1]), (1.0, targets.tail[:, 0])]
    for (low, first), (high, second) in itertools.pairwise(known):
        beta = data.draw(st.floats(max(low, 1e-3), high))
        temperature = max(1.0, 1 / beta)
        found = targets.log_probs(temperature)[1] + targets.log_z(temperature)
        chord = first + (second - first) * (beta - low) / (high - low)
        assert (found <= chord + 1e-3 * (1 + chord.abs())).all()
        assert (found >= targets.tail[:, 0] * beta - 1e-3 * (1 + found.abs())).all()


@SKETCHES
def test_a_tail_of_one_class_is_exact(sparse: Any) -> None:
    logits = heavy(50, 5)
    targets = sparse(logits, 4)
    for temperature in (1.0, 1.5, 3.0, 20.0):
        truth = true_log_mass(logits, targets, temperature)
        np.testing.assert_allclose(targets.log_probs(temperature)[1], truth, rtol=1e-5, atol=2e-6)


def test_everything_kept_leaves_no_tail() -> None:
    logits = heavy(50, 5)
    targets = sparse(logits, 5)
    assert targets.tail is None
    assert targets.tail_count == 0
    kept, mass = targets.log_probs(3.0)
    assert mass.eq(-math.inf).all()
    exact = torch.log_softmax(logits.double() / 3, 1).gather(1, targets.indices)
    np.testing.assert_allclose(kept, exact, atol=1e-5)


@SKETCHES
def test_hopeless_tails_stay_finite(sparse: Any) -> None:
    """Classes masked with -1e9, or a teacher with logits in the thousands: nothing overflows on the way."""
    logits = torch.full((2, 50), -1e9)
    logits[:, 3] = 5.0
    logits[1] = torch.linspace(-9000, 9000, 50)
    for dtype in ("float16", "float32"):
        targets = sparse(logits, 2, dtype)
        for temperature in (1.0, 2.0, 20.0, 1e6):
            kept, mass = targets.log_probs(temperature)
            assert kept.isfinite().all()
            assert mass.isfinite().all()
            np.testing.assert_allclose(kept.exp().sum(1) + mass.exp(), 1.0, atol=1e-4)


@pytest.mark.parametrize("temperature", [0.5, 0.0, -1.0, math.inf, math.nan])
def test_other_temperatures_are_refused(temperature: float) -> None:
    targets = sparse(heavy(3, 10), 4)
    for served in (targets.log_probs, targets.log_z):
        with pytest.raises(UsageError, match="1 <= T < infinity"):
            served(temperature)


def test_rows_are_taken_by_slice_index_and_mask() -> None:
    targets = sparse(heavy(6, 10), 4)
    wanted = torch.tensor([4, 1])
    assert targets.tail is not None
    for rows in (slice(1, 3), wanted, torch.tensor([True, False, True, False, False, True])):
        part = targets[rows]
        assert part.tail is not None
        assert torch.equal(part.indices, targets.indices[rows])
        assert torch.equal(part.log_p, targets.log_p[rows])
        assert torch.equal(part.tail, targets.tail[rows])
        assert (part.num_classes, part.temperatures) == (10, (1.0, 2.0, 4.0))
    assert len(targets[wanted]) == 2
    assert len(targets[:0].log_probs(2.0)[0]) == 0
    assert targets.to("cpu").device == torch.device("cpu")


def test_padded_slots_count_to_the_tail() -> None:
    logits = heavy(3, 12).double().log_softmax(1)
    order = logits.argsort(1, descending=True)
    indices, log_p = order[:, :4].clone(), logits.gather(1, order)[:, :4]
    counts = [4, 1, 2]
    tail = torch.zeros(3, 2, dtype=torch.float64)
    for row, count in enumerate(counts):
        rest = logits[row, order[row, count:]]
        tail[row] = torch.stack([rest.logsumexp(0), (rest / 2).logsumexp(0)])
        indices[row, count:], log_p[row, count:] = indices[row, 0], -math.inf
    targets = SparseLogits(indices, log_p, tail, 12, (1.0, 2.0))
    np.testing.assert_allclose(targets.tail_log_count.exp(), [8, 11, 10])
    exact = torch.log_softmax(logits / 2, 1)
    kept, mass = targets.log_probs(2.0)
    for row, count in enumerate(counts):
        np.testing.assert_allclose(kept[row, :count], exact[row, order[row, :count]], atol=1e-12)
        assert (kept[row, count:] == -math.inf).all()
        np.testing.assert_allclose(mass[row], exact[row, order[row, count:]].logsumexp(0), atol=1e-12)
    np.testing.assert_allclose(targets.log_z(2.0), (logits / 2).logsumexp(1), atol=1e-12)


def test_positions_are_rows() -> None:
    logits = heavy(12, 30)
    flat = sparse(logits, 5)
    assert flat.tail is not None
    shaped = SparseLogits(
        flat.indices.view(3, 4, 5), flat.log_p.view(3, 4, 5), flat.tail.view(3, 4, 3), 30, flat.temperatures
    )
    assert (shaped.shape, len(shaped)) == ((3, 4, 30), 3)
    for temperature in (1.0, 3.0):
        kept, mass = shaped.log_probs(temperature)
        assert (kept.shape, mass.shape) == ((3, 4, 5), (3, 4))
        assert torch.equal(kept.flatten(0, 1), flat.log_probs(temperature)[0])
        assert torch.equal(shaped.flatten().log_z(temperature), flat.log_z(temperature))
    assert torch.equal(shaped[1:].flatten().log_p, flat[4:].log_p)


def test_misshapen_parts_are_refused() -> None:
    indices, log_p, tail = torch.zeros(2, 3, dtype=torch.int64), torch.zeros(2, 3), torch.zeros(2, 3)
    with pytest.raises(UsageError, match=r"must both be \[..., K\]"):
        SparseLogits(indices[:, :2], log_p, tail, 10)
    with pytest.raises(UsageError, match=r"must both be \[..., K\]"):
        SparseLogits(indices[0], log_p[0], tail[0], 10)
    with pytest.raises(UsageError, match="3 kept classes of 2"):
        SparseLogits(indices, log_p, tail, 2)
    with pytest.raises(UsageError, match="tail's shape is None"):
        SparseLogits(indices, log_p, None, 10)
    with pytest.raises(UsageError, match=r"tail's shape is \(2, 3\)"):
        SparseLogits(indices, log_p, tail, 3)
    with pytest.raises(UsageError, match=r"tail's shape is \(2, 3\), .* need \(2, 2\)"):
        SparseLogits(indices, log_p, tail, 10, (1.0, 2.0))
    for temperatures in ((2.0, 3.0, 4.0), (1.0, 3.0, 3.0), (1.0, 2.0, math.inf)):
        with pytest.raises(UsageError, match="must ascend from 1"):
            SparseLogits(indices, log_p, tail, 10, temperatures)
