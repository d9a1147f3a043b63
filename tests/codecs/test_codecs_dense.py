from __future__ import annotations

import math
from typing import ClassVar

import pytest
import torch
from codec_contract import CodecContract

from kdcache.arrays import Array
from kdcache.codecs import dense
from kdcache.errors import UsageError


class TestDenseFloat32(CodecContract):
    name = "dense"
    configuration: ClassVar = {"dtype": "float32"}
    most_kl = 0.0
    golden_configuration: ClassVar = {"dtype": "float32"}
    golden_bytes: ClassVar = {"": "00000040000080bf0000003f00000040" + "00" * 16}


class TestDenseFloat16(CodecContract):
    name = "dense"
    configuration: ClassVar = {"dtype": "float16"}
    most_kl = 1e-5
    golden_configuration: ClassVar = {"dtype": "float16"}
    golden_bytes: ClassVar = {"": "004000bc00380040" + "00" * 8}


class TestDenseBfloat16(CodecContract):
    name = "dense"
    configuration: ClassVar = {"dtype": "bfloat16"}
    most_kl = 1e-3
    golden_configuration: ClassVar = {"dtype": "bfloat16"}
    golden_bytes: ClassVar = {"": "004080bf003f0040" + "00" * 8}


@pytest.mark.parametrize("dtype", ["uint8", "int8", "uint16", "int16", "uint32", "int32", "int64", "float64"])
def test_other_types_pass_through(dtype: str) -> None:
    array = Array(dtype, (2, 3))
    configuration = dense.configure({}, array)
    assert configuration == {"dtype": dtype}
    values = torch.arange(12).reshape(2, 2, 3).to(getattr(torch, dtype))
    stored = dense.encode(values, configuration, {})
    assert torch.equal(dense.decode(stored, array, configuration, {}), values)


def test_scalars() -> None:
    configuration = dense.configure({"dtype": "int64"}, Array("int64"))
    labels = torch.tensor([3, -1])
    stored = dense.encode(labels, configuration, {})
    assert torch.equal(dense.decode(stored, Array("int64"), configuration, {}), labels)


def test_overflow_names_count_and_cure() -> None:
    values = torch.tensor([[1.0, 70000.0], [-1e5, 65504.0]])
    with pytest.raises(
        UsageError,
        match=r"2 of 4 values are too large for float16 \(largest 100000, limit 65504\); "
        "set dtype = bfloat16 or float32",
    ):
        dense.encode(values, {"dtype": "float16"}, {})
    assert dense.encode(values, {"dtype": "bfloat16"}, {})[""].isfinite().all()


def test_infinity_itself_is_no_overflow() -> None:
    stored = dense.encode(torch.tensor([[math.inf, 1.0]]), {"dtype": "float16"}, {})
    assert stored[""].tolist() == [[math.inf, 1.0]]


def test_bfloat16_may_come_as_the_uint16_that_numpy_carries() -> None:
    array, configuration = Array("float32", (3,)), {"dtype": "bfloat16"}
    stored = dense.encode(torch.tensor([[1.0, -2.5, 300.0]]), configuration, {})
    carried = {"": stored[""].view(torch.uint16)}
    assert dense.decode(carried, array, configuration, {}).tolist() == [[1.0, -2.5, 300.0]]


@pytest.mark.parametrize(
    ("dtype", "array"),
    [("uint8", Array("int64")), ("float16", Array("uint8", (3,))), ("int64", Array("float32", (3,)))],
)
def test_no_silent_change_of_kind(dtype: str, array: Array) -> None:
    with pytest.raises(UsageError, match="does not hold"):
        dense.configure({"dtype": dtype}, array)


def test_unknown_dtype() -> None:
    with pytest.raises(UsageError, match="float8"):
        dense.configure({"dtype": "float8"}, Array("float32", (3,)))


def test_values_of_another_kind_are_refused() -> None:
    with pytest.raises(UsageError, match=r"torch.int64 cannot be stored as uint8"):
        dense.encode(torch.tensor([300]), {"dtype": "uint8"}, {})
