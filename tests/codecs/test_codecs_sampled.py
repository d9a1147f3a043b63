from __future__ import annotations

from typing import ClassVar

import pytest
import torch
from codec_contract import CodecContract, estimate, logits

from kdcache.arrays import Array
from kdcache.codecs import sampled
from kdcache.codecs.draws import draws
from kdcache.errors import StoreDamaged, UsageError


class TestContract(CodecContract):
    name = "sampled"
    configuration: ClassVar = {"draws": 12}
    most_kl = None
    golden_configuration: ClassVar = {"draws": 9, "seed": 1}
    golden_bytes: ClassVar = {"": "3f0d6f0d"}


class TestContractAtFour(CodecContract):
    name = "sampled"
    configuration: ClassVar = {"draws": 40, "temperature": 4, "seed": 9}
    most_kl = None
    golden_configuration: ClassVar = {"draws": 1}
    golden_bytes: ClassVar = {"": "00020001"}


def test_counts_are_of_the_inverse_distribution_function() -> None:
    """An independent reference: one draw at a time, in float64."""
    values, keys, count, temperature = logits(20, 7), torch.arange(20) * 3, 50, 2.0
    array = Array("float32", (7,))
    configuration = sampled.configure({"draws": count, "temperature": temperature, "seed": 4}, array)
    decoded = sampled.decode(sampled.encode(values, configuration, {}, keys), array, configuration, {})
    for row, uniform, found in zip(values.double(), draws(4, keys, count), estimate(decoded), strict=True):
        sums = (row / temperature).softmax(0).cumsum(0)
        expected = [0] * 7
        for number in uniform.tolist():
            expected[next(i for i, total in enumerate([*sums[:-1].tolist(), 2.0]) if total > number)] += 1
        assert found.tolist() == pytest.approx([times / count for times in expected], abs=1e-7)
    assert (decoded.weights * count).frac().abs().max() < 1e-5  # whole counts, nothing cut off


def test_squared_error_is_as_theory_says() -> None:
    """E||p^ - p||^2 = (1 - sum p^2) / N, over 20,000 keys, within 5 standard errors."""
    values, times = logits(1, 30, seed=5), 20_000
    array = Array("float32", (30,))
    configuration = sampled.configure({"draws": 8}, array)
    stored = sampled.encode(values.expand(times, 30), configuration, {}, torch.arange(times))
    found = estimate(sampled.decode(stored, array, configuration, {}))
    exact = values[0].double().softmax(0)
    error = (found - exact).square().sum(1)
    assert abs(float(error.mean()) - float(1 - exact.square().sum()) / 8) < 5 * float(error.std()) / times**0.5


def test_a_large_vocabulary_and_extreme_logits() -> None:
    array = Array("float32", (70_001,))
    configuration = sampled.configure({"draws": 16}, array)
    values = torch.full((2, 70_001), -3e38)
    values[0, 70_000] = 3e38
    values[1, 0] = -3e38 + 1e32
    decoded = sampled.decode(sampled.encode(values, configuration, {}, torch.tensor([1, 2])), array, configuration, {})
    assert decoded.indices[0, 0] == 70_000
    assert decoded.weights[:, 0].tolist() == [1.0, 1.0]
    assert decoded.indices[1, 0] == 0


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "draws = None"),
        ({"draws": 0}, "draws = 0"),
        ({"draws": True}, "draws = True"),
        ({"draws": 2.0}, "draws = 2.0"),
        ({"draws": 1 << 17}, "at most 65536"),
        ({"draws": 4, "temperature": 0}, "temperature = 0"),
        ({"draws": 4, "temperature": float("nan")}, "temperature = nan"),
        ({"draws": 4, "temperature": 1e9}, "0.05 to 1000"),
        ({"draws": 4, "seed": -1}, "seed = -1"),
    ],
)
def test_bad_configuration(given: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        sampled.configure(given, Array("float32", (20,)))


@pytest.mark.parametrize("array", [Array("float32", (3, 8, 8)), Array("int64", (4,)), Array("float32")])
def test_not_for_feature_maps(array: Array) -> None:
    with pytest.raises(UsageError, match="use the dense codec"):
        sampled.configure({"draws": 4}, array)


def test_rows_without_keys_are_refused() -> None:
    configuration = sampled.configure({"draws": 4}, Array("float32", (20,)))
    with pytest.raises(UsageError, match="keys"):
        sampled.encode(logits(3, 20), configuration, {})
    with pytest.raises(UsageError, match=r"keys are \[2\] and the rows \[3\]"):
        sampled.encode(logits(3, 20), configuration, {}, torch.arange(2))


def test_damage() -> None:
    array = Array("float32", (20,))
    configuration = sampled.configure({"draws": 12}, array)
    stored = sampled.encode(logits(5, 20), configuration, {}, torch.arange(5))
    stored[""][3] = 0xFF
    with pytest.raises(StoreDamaged, match="kdcache verify"):
        sampled.decode(stored, array, configuration, {})
