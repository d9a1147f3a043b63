from __future__ import annotations

import math
from typing import ClassVar

import pytest
import torch
from codec_contract import CodecContract, kl, logits
from torch import Tensor

from kdcache.arrays import Array
from kdcache.codecs import QuantisedLogits, quant
from kdcache.errors import StoreDamaged, UsageError

MAP = Array("float32", (3, 4, 5))


class TestEightBits(CodecContract):
    name = "quant"
    configuration: ClassVar = {"bits": 8}
    most_kl = 2e-3
    golden_configuration: ClassVar = {"bits": 8}
    # Steps of 3 / 255, in float16 0x2206 = 0.0117645; 1.5 of them above -1 is code 127.5, and to even 128 (or 127)
    golden_bytes: ClassVar = {"": "ff0080ff00000000", "range": "062200bc00000000"}


class TestFourBits(CodecContract):
    name = "quant"
    configuration: ClassVar = {"bits": 4, "dtype": "float32"}
    most_kl = 0.1
    golden_configuration: ClassVar = {"bits": 4}
    golden_bytes: ClassVar = {"": "0ff80000", "range": "663200bc00000000"}


def through(values: Tensor, array: Array, **given: object) -> QuantisedLogits | Tensor:
    configuration = quant.configure(given, array)
    return quant.decode(quant.encode(values, configuration, {}), array, configuration, {})


def dense(decoded: QuantisedLogits | Tensor) -> Tensor:
    assert isinstance(decoded, QuantisedLogits)
    return decoded.dense()


def test_four_bits_of_logits_by_hand() -> None:
    """0 to 15 in steps of 1 are exact over the whole range, so the whole range has no loss."""
    values = torch.arange(16.0)[None].flip(1)
    array = Array("float32", (16,))
    configuration = quant.configure({"bits": 4}, array)
    stored = quant.encode(values, configuration, {})
    assert stored["range"].tolist() == [[1.0, 0.0]]
    assert stored[""].tolist() == [[0xEF, 0xCD, 0xAB, 0x89, 0x67, 0x45, 0x23, 0x01]]
    decoded = quant.decode(stored, array, configuration, {})
    assert isinstance(decoded, QuantisedLogits)
    assert decoded.codes.dtype == torch.uint8
    assert torch.equal(decoded.dense(), values)


def test_eight_bits_are_within_half_a_step() -> None:
    values = logits(200, 30)
    decoded = through(values, Array("float32", (30,)), bits=8, dtype="float32")
    assert isinstance(decoded, QuantisedLogits)
    steps = (values.amax(1) - values.amin(1)) / 255
    assert ((decoded.dense() - values).abs().amax(1) <= steps * 0.5001 + 1e-6).all()


def test_the_range_of_four_bits_is_the_best_of_eight() -> None:
    """Against an independent float64 search, and better than the whole range at every temperature."""
    values = logits(60, 50)
    high, low = values.amax(1, keepdim=True), values.amin(1, keepdim=True)
    losses, whole = [], None
    for share in (1.0, 0.95, 0.9, 0.85, 0.8, 0.7, 0.6, 0.5):
        floor = high - share * (high - low)
        step = (high - floor) / 15
        decoded = ((values - floor) / step).round().clamp(0, 15) * step + floor
        whole = decoded if whole is None else whole
        losses.append(torch.tensor([[weighted(*pair)] for pair in zip(values, decoded, strict=True)]))
    found = through(values, Array("float32", (50,)), bits=4, dtype="float32")
    assert isinstance(found, QuantisedLogits)
    ours = torch.tensor([weighted(*pair) for pair in zip(values, found.dense(), strict=True)])
    assert torch.allclose(ours, torch.cat(losses, 1).amin(1), rtol=1e-3, atol=1e-5)
    before, after = kl(values, whole), kl(values, found)
    assert after["1"] < 0.8 * before["1"]
    assert after["2"] < 0.8 * before["2"]
    assert after["4"] < before["4"]


def weighted(row: Tensor, decoded: Tensor) -> float:
    """Sum over T = 1, 2, 4 of T^2 KL."""
    return sum(4**i * value for i, value in enumerate(kl(row[None], decoded[None]).values()))


@pytest.mark.parametrize("bits", [4, 8])
def test_channels_of_a_map_have_their_own_scales(bits: int) -> None:
    values = (
        torch.randn(6, 3, 4, 5, generator=torch.Generator().manual_seed(1))
        * torch.tensor([1.0, 10, 100])[:, None, None]
    )
    array = MAP
    decoded = through(values, array, bits=bits)
    assert isinstance(decoded, Tensor)
    assert (decoded.dtype, decoded.shape) == (torch.float32, (6, 3, 4, 5))
    flat = values.flatten(2)
    step = (flat.amax(2) - flat.amin(2)) / (2**bits - 1)
    error = (decoded - values).flatten(2).abs().amax(2)
    assert (error <= step * 0.5 + flat.abs().amax(2) * 2**-10).all()
    row = through(values, array, bits=bits, per="row")
    assert isinstance(row, Tensor)
    assert (row - values)[:, 0].square().mean() > 50 * (decoded - values)[:, 0].square().mean()


def test_an_odd_number_of_four_bit_codes() -> None:
    array = Array("float32", (2, 1, 3))
    configuration = quant.configure({"bits": 4}, array)
    assert quant.columns(array, configuration) == {"": Array("uint8", (2, 2)), "range": Array("float16", (2, 2))}
    values = torch.tensor([[[[0.0, 15.0, 5.0]], [[2.0, 2.0, 2.0]]]])
    assert torch.equal(through(values, array, bits=4), values)


def test_equal_values_and_tiny_ranges() -> None:
    values = torch.tensor([[7.0, 7.0, 7.0], [1e-9, 0.0, 2e-9]])
    for bits in (4, 8):
        decoded = through(values, Array("float32", (3,)), bits=bits)
        assert isinstance(decoded, QuantisedLogits)
        assert torch.allclose(decoded.dense(), values, atol=1e-8)


@pytest.mark.parametrize("values", [[[-1e5, 0.0]], [[3e38, -3e38]], [[2e7, 0.0]]])
def test_what_the_range_does_not_hold(values: list[list[float]]) -> None:
    array = Array("float32", (2,))
    with pytest.raises(UsageError, match='set dtype = "float32"'):
        quant.encode(torch.tensor(values), quant.configure({"bits": 4}, array), {})


def test_logits_of_any_size_the_range_holds() -> None:
    assert torch.allclose(
        dense(through(torch.tensor([[1e5, 0.0]]), Array("float32", (2,)), bits=4))[0, 0], torch.tensor(1e5), rtol=1e-3
    )


@pytest.mark.parametrize(
    ("given", "array", "message"),
    [
        ({"bits": 5}, MAP, "bits = 5; take 8 or 4"),
        ({"bits": True}, MAP, "bits = True"),
        ({"per": "column"}, MAP, "take row or channel"),
        ({"per": "channel"}, Array("float32", (9,)), 'use "row"'),
        ({"dtype": "bfloat16"}, MAP, "float16 or float32"),
        ({}, Array("int64", (3,)), "use the dense codec"),
        ({}, Array("float32"), "use the dense codec"),
    ],
)
def test_bad_configuration(given: dict[str, object], array: Array, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        quant.configure(given, array)


@pytest.mark.parametrize(("value", "message"), [(math.nan, "NaN"), (math.inf, "infinity"), (-1.0, "negative scale")])
def test_damage(value: float, message: str) -> None:
    array = Array("float32", (20,))
    configuration = quant.configure({"bits": 8}, array)
    stored = quant.encode(logits(4, 20), configuration, {})
    stored["range"][2, 0] = value
    with pytest.raises(StoreDamaged, match=message):
        quant.decode(stored, array, configuration, {})
