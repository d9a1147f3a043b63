from __future__ import annotations

import math
from typing import ClassVar

import pytest
import torch
from codec_contract import CodecContract, estimate, logits
from torch import Tensor

from kdcache.arrays import Array
from kdcache.codecs import SampledLogits, sampled, threshold
from kdcache.codecs.draws import draws
from kdcache.errors import StoreDamaged, UsageError

C40 = Array("float32", (40,))


class TestContract(CodecContract):
    name = "threshold"
    configuration: ClassVar = {"k": 15}
    most_kl = None
    golden_values: ClassVar = [[3.0, -1.0, 0.5, 2.0, 0.0] * 4, [0.0] * 20]
    golden_configuration: ClassVar = {"k": 20}
    golden_bytes: ClassVar = {"head": "04050403", "values": "434a2426", "tail": "18aac77c0c5455555515"}


class TestContractFloat16AtTwo(CodecContract):
    name = "threshold"
    configuration: ClassVar = {"k": 20, "dtype": "float16", "temperature": 2, "seed": 9}
    most_kl = None
    golden_values: ClassVar = [[3.0, -1.0, 0.5, 2.0, 0.0] * 4, [0.0] * 20]
    golden_configuration: ClassVar = {"k": 12, "dtype": "float16"}
    golden_bytes: ClassVar = {"head": "00010001", "values": "4531662a", "tail": "c8c491114a4a5212"}


class TestContractOfOneDraw(CodecContract):
    name = "threshold"
    configuration: ClassVar = {"k": 1}
    most_kl = None
    golden_configuration: ClassVar = {"k": 1}
    golden_bytes: ClassVar = {"tail": "00020001"}


def many(codec: object, given: dict[str, object], values: Tensor, times: int) -> tuple[Tensor, SampledLogits]:
    """The estimates float64 [times, C] of one row under keys 0, 1, ..."""
    array = Array("float32", (values.shape[-1],))
    configuration = codec.configure(given, array)
    stored = codec.encode(values.expand(times, -1), configuration, {}, torch.arange(times))
    decoded = codec.decode(stored, array, configuration, {})
    return estimate(decoded), decoded


def test_a_row_by_hand() -> None:
    """Masses 1/2, 1/4, 1/8, 1/8 and k = 3: the head is class 0, and two marks share 1/2, so tau = 1/4.

    Class 1 has a stretch of tau: one mark. Of classes 2 and 3 the first has the other mark if u < 1/2.
    """
    values = torch.tensor([[0.5, 0.25, 0.125, 0.125]]).log()
    found, decoded = many(threshold, {"k": 3, "dtype": "float16"}, values, 50)
    below = draws(0, torch.arange(50), 1)[:, 0] < 0.5
    for row, first in zip(found.tolist(), below.tolist(), strict=True):
        assert row == pytest.approx([0.5, 0.25, 0.25 * first, 0.25 * (not first)], abs=2**-12)
    assert decoded.indices[:, 0].tolist() == [0] * 50


def test_every_mark_is_kept_and_weighs_the_same() -> None:
    values = logits(300, 40)
    configuration = threshold.configure({"k": 25}, C40)
    decoded = threshold.decode(threshold.encode(values, configuration, {}, torch.arange(300)), C40, configuration, {})
    marks = decoded.weights[:, 2:] / (1 - decoded.weights[:, :2].sum(1, keepdim=True)).clamp_min(1e-30) * 23
    big = decoded.weights[:, :2].sum(1) < 0.99
    assert (marks[big] - marks[big].round()).abs().max() < 1e-3
    assert torch.equal(marks[big].round().sum(1), torch.full((int(big.sum()),), 23.0))
    two = values.topk(2).indices.sort(1).values
    assert torch.equal(decoded.indices[:, :2], two)


@pytest.mark.parametrize("given", [{"k": 12}, {"k": 30, "dtype": "float16"}, {"k": 12, "temperature": 3.0}, {"k": 1}])
def test_mean_and_variance_of_every_class(given: dict[str, object]) -> None:
    """Marks: mean p and variance tau^2 f (1 - f) of every class, within 5 standard errors over 40,000 keys."""
    values, times = logits(1, 40, seed=3) / 2, 40_000
    exact = (values[0].double() / given.get("temperature", 1.0)).softmax(0)
    found, _ = many(threshold, given, values, times)
    head = min(max(1, given["k"] // 10), given["k"] - 1)
    rest = exact.clone()
    kept = exact.topk(head).indices
    rest[kept] = 0
    tau = rest.sum() / (given["k"] - head)
    fraction = (rest / tau).frac()
    variance = tau**2 * fraction * (1 - fraction)
    # A head value's rounding moves the others with it: at most one level, pi / 510 for uint8, 2^-11 for float16.
    level = {"uint8": math.pi / 510, "float16": 2.0**-11}[given.get("dtype", "uint8")]
    spread = variance.clone() + 1e-12
    spread[kept] += level**2
    spread += level**2 * exact
    assert ((found.mean(0) - exact).abs() <= 5 * (spread / times).sqrt() + 1e-9).all()
    measured = found.var(0)
    slack = 5 * (tau**2 * (variance + 1e-9) / times).sqrt() + 3 * level**2 * (exact + 1e-3) + 1e-9
    assert ((measured - variance)[rest > 0].abs() <= slack[rest > 0]).all()


def gradient_errors(found: Tensor, exact: Tensor, temperature: float) -> tuple[float, float]:
    """How far the mean gradient of the distillation loss is from the exact one, in standard errors, along 30 directions
    of a student's weights and the worst of them."""
    generator = torch.Generator().manual_seed(4)
    hidden = torch.randn(30, exact.shape[-1], generator=generator, dtype=torch.float64)
    student = torch.randn(exact.shape[-1], generator=generator, dtype=torch.float64)
    gradient = ((student / temperature).softmax(0) - found) @ hidden.T
    wanted = ((student / temperature).softmax(0) - exact) @ hidden.T
    error = (gradient.mean(0) - wanted).abs() / (gradient.std(0) / len(found) ** 0.5 + 1e-9)
    return float(error.max()), float((gradient.mean(0) - wanted).abs().max())


@pytest.mark.parametrize(
    ("codec", "given"),
    [
        (threshold, {"k": 20}),
        (threshold, {"k": 20, "dtype": "float16"}),
        (threshold, {"k": 6, "temperature": 4.0}),
        (sampled, {"draws": 12}),
        (sampled, {"draws": 12, "temperature": 4.0}),
    ],
)
def test_gradients_of_a_student_are_unbiased(codec: object, given: dict[str, object]) -> None:
    values, temperature = logits(1, 40, seed=6) / 2, given.get("temperature", 1.0)
    exact = (values[0].double() / temperature).softmax(0)
    found, _ = many(codec, given, values, 20_000)
    worst, _ = gradient_errors(found, exact, temperature)
    assert worst < 5


def test_the_same_test_finds_the_bias_of_renormalised_top_k() -> None:
    values = logits(1, 40, seed=6) / 2
    exact = values[0].double().softmax(0)
    kept = values.double().topk(12)
    biased = torch.zeros(1, 40, dtype=torch.float64).scatter(1, kept.indices, kept.values.softmax(1))
    found, _ = many(threshold, {"k": 12}, values, 20_000)
    noise = found - found.mean(0)  # as much scatter as the unbiased estimate has
    worst, _ = gradient_errors(biased + noise, exact, 1.0)
    assert worst > 5


def test_less_error_than_multinomial_draws_of_the_same_bytes() -> None:
    values, times = logits(40, 40, seed=2), 200
    exact = values.double().softmax(1)
    error = {}
    for codec, given in ((threshold, {"k": 28}), (sampled, {"draws": 65})):
        configuration = codec.configure(given, C40)
        width = sum(array.width for array in codec.columns(C40, configuration).values())
        assert width == 13
        stored = codec.encode(values.repeat(times, 1), configuration, {}, torch.arange(40 * times))
        found = estimate(codec.decode(stored, C40, configuration, {})).reshape(times, 40, 40)
        error[codec.__name__] = float((found - exact).square().sum(2).mean())
    assert error["kdcache.codecs.threshold"] < error["kdcache.codecs.sampled"] / 3


@pytest.mark.parametrize("dtype", ["uint8", "float16"])
def test_rows_of_little_mass_elsewhere(dtype: str) -> None:
    """One class has all mass, or two have, or the rest has less than a level: still sums to 1, and still unbiased."""
    rows = torch.tensor([[100.0, *[0.0] * 39], [50.0, 50.0, *[-60.0] * 38], [9.0, *[-2.0] * 39], [3e38, *[-3e38] * 39]])
    times = 20_000
    for row in rows:
        found, decoded = many(threshold, {"k": 30, "dtype": dtype}, row[None], times)
        assert (decoded.weights >= 0).all()
        assert torch.allclose(decoded.weights.sum(1), torch.ones(times), atol=1e-6)
        exact = (row.double() - row.max()).softmax(0)
        assert ((found.mean(0) - exact).abs() <= 5 * (found.std(0) / times**0.5) + 1e-6).all()


def test_equal_logits_keep_the_smaller_classes() -> None:
    configuration = threshold.configure({"k": 30}, C40)
    decoded = threshold.decode(
        threshold.encode(torch.zeros(3, 40), configuration, {}, torch.arange(3)), C40, configuration, {}
    )
    assert decoded.indices[:, :3].tolist() == [[0, 1, 2]] * 3


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "k = None"),
        ({"k": 0}, "k = 0"),
        ({"k": 41}, "k = 41 is more than the 40 classes.*at most 40"),
        ({"k": 4, "dtype": "float32"}, "take uint8 or float16"),
        ({"k": 4, "temperature": -1}, "temperature = -1"),
        ({"k": 4, "seed": 0.5}, "seed = 0.5"),
    ],
)
def test_bad_configuration(given: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        threshold.configure(given, C40)


def test_damage() -> None:
    configuration = threshold.configure({"k": 30, "dtype": "float16"}, C40)
    stored = threshold.encode(logits(5, 40), configuration, {}, torch.arange(5))
    for value in (1.001, -0.1, math.nan, math.inf):
        values = stored["values"].clone()
        values[2, 1] = value
        with pytest.raises(StoreDamaged, match="outside 0 to 1"):
            threshold.decode({**stored, "values": values}, C40, configuration, {})
    for suffix in ("head", "tail"):
        bytes_ = stored[suffix].clone()
        bytes_[4] = 0xFF
        with pytest.raises(StoreDamaged, match=f"column '{suffix}'"):
            threshold.decode({**stored, suffix: bytes_}, C40, configuration, {})
