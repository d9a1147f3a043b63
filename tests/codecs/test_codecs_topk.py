from __future__ import annotations

import math
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from codec_contract import CodecContract, same_targets
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from kdcache.arrays import Array
from kdcache.codecs import SparseLogits, topk
from kdcache.codecs.bits import pack
from kdcache.errors import StoreDamaged, UsageError

EARLY = {"dtype": "float16", "k": 3}  # as it stands in the plans of early stores


class TestTopk(CodecContract):
    name = "topk"
    configuration: ClassVar = {"k": 6}
    most_kl = 0.2
    golden_configuration: ClassVar = {"k": 2}
    # Row 0 keeps classes 0 and 3, row 1 classes 0 and 1, in two bits each from the least on.
    golden_bytes: ClassVar = {"indices": "0c04", "values": "92ba92ba8cbd8cbd", "tail": "3dc030ba50ab8cb900008c35"}


class TestTopkBytes(CodecContract):
    name = "topk"
    configuration: ClassVar = {"k": 6, "dtype": "uint8"}
    most_kl = 0.2
    golden_values: ClassVar = [[2.0, -1.0, 0.5, 2.0], [0.0, 3.0, 1.0, 0.5]]
    golden_configuration: ClassVar = {"k": 3, "dtype": "uint8"}
    golden_bytes: ClassVar = {
        "indices": "2c39",
        "values": "0000ff00ff7f",
        "scale": "92ba003e94b30040",
        "tail": "a4c3a4bfa4bb79c279be79ba",
    }


class TestTopkMass(CodecContract):
    name = "topk"
    configuration: ClassVar = {"mass": 0.95, "k": 12}
    most_kl = 0.2
    golden_values: ClassVar = [[2.0, -1.0, 0.5, 2.0], [0.0, 3.0, 1.0, 0.5]]
    golden_configuration: ClassVar = {"k": 3, "mass": 0.75}
    golden_bytes: ClassVar = {
        "indices": "0c15",
        "values": "92ba92bafffb94b3fffbfffb",
        "tail": "3dc030ba50ab3abef8b3b736",
    }


def targets(logits: Tensor, **wanted: Any) -> SparseLogits:
    array = Array("float32", tuple(logits.shape[1:]))
    configuration = topk.configure(wanted, array)
    return topk.decode(topk.encode(logits, configuration, {}), array, configuration, {})


def test_values_by_hand() -> None:
    # Logits log 8, log 4, log 2, log 1, log 1: Z = 16.
    logits = torch.tensor([[0.0, math.log(4), math.log(2), math.log(8), 0.0]])
    stored = topk.encode(logits, topk.configure({"k": 2, "dtype": "float32"}, Array("float32", (5,))), {})
    assert stored["indices"].tolist() == [[3 + (1 << 3)]]
    np.testing.assert_allclose(stored["values"], [[math.log(8 / 16), math.log(4 / 16)]], rtol=1e-6)
    rest = np.array([2 / 16, 1 / 16, 1 / 16])
    np.testing.assert_allclose(stored["tail"], [[np.log((rest ** (1 / t)).sum()) for t in (1, 2, 4)]], rtol=1e-6)


def test_the_early_sketch_by_hand() -> None:
    logits = torch.tensor([[0.0, math.log(4), math.log(2), math.log(8), 0.0]])
    stored = topk.encode(logits, {"k": 2, "dtype": "float32"}, {})
    assert stored["indices"].tolist() == [[3, 1]]
    rest = np.log([2 / 16, 1 / 16, 1 / 16])
    np.testing.assert_allclose(stored["tail"], [[rest.mean(), rest.var(), math.log(4 / 16)]], rtol=1e-6)


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 300), st.integers(0, 10_000), st.sampled_from([0.1, 3.0, 20.0]), st.data())
def test_matches_a_float64_reference(classes: int, seed: int, scale: float, data: st.DataObject) -> None:
    k = data.draw(st.integers(1, classes - 1))
    temperatures = data.draw(st.sampled_from([(2.0, 4.0), (1.5,), (1.25, 2.5, 5.0, 20.0)]))
    logits = np.random.default_rng(seed).normal(0, scale, (3, classes)).astype(np.float32)
    found = targets(torch.from_numpy(logits), k=k, dtype="float32", temperatures=temperatures)
    wide = logits.astype(np.float64)
    log_p = wide - np.log(np.exp(wide).sum(1, keepdims=True))
    order = np.argsort(-wide, axis=1, kind="stable")
    kept, rest = (np.take_along_axis(log_p, part, 1) for part in (order[:, :k], order[:, k:]))
    assert found.temperatures == (1.0, *temperatures)
    assert found.indices.tolist() == order[:, :k].tolist()
    np.testing.assert_allclose(found.log_p, kept, rtol=1e-5, atol=1e-5)
    reference = np.stack([np.log(np.exp(rest / t).sum(1)) for t in (1.0, *temperatures)], 1)
    np.testing.assert_allclose(found.tail, reference, rtol=1e-4, atol=1e-5)
    assert found.tail_log_count.tolist() == pytest.approx([math.log(classes - k)] * 3)


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 60), st.integers(0, 10_000), st.floats(0.05, 0.999), st.sampled_from([0.3, 3.0]), st.data())
def test_mass_keeps_as_many_as_reach_it(
    classes: int, seed: int, mass: float, scale: float, data: st.DataObject
) -> None:
    k = data.draw(st.integers(1, classes - 1))
    dtype = data.draw(st.sampled_from(["float16", "float32", "uint8"]))
    logits = torch.from_numpy(np.random.default_rng(seed).normal(0, scale, (4, classes)).astype(np.float32))
    found = targets(logits, k=k, mass=mass, dtype=dtype)
    p = torch.softmax(logits.double(), 1).sort(1, descending=True).values
    for row in range(4):
        count = int((found.log_p[row] > -math.inf).sum())
        before, reached = float(p[row, : count - 1].sum()), float(p[row, :count].sum())
        assert before < mass + 1e-6
        assert count == k or reached >= mass - 1e-6
        assert (found.indices[row, count:] == found.indices[row, 0]).all()
        assert (found.log_p[row, count:] == -math.inf).all()
        assert found.tail_log_count[row].item() == pytest.approx(math.log(classes - count), abs=1e-6)
        rest = (logits[row].double() - logits[row].double().logsumexp(0)).sort(descending=True).values[count:]
        for at, temperature in enumerate((1.0, 2.0, 4.0)):
            assert found.tail is not None
            wanted = float((rest / temperature).logsumexp(0))
            assert found.tail[row, at].item() == pytest.approx(wanted, rel=2e-3, abs=2e-3)
    kept, tail = found.log_probs(2.0)
    np.testing.assert_allclose(kept.exp().sum(1) + tail.exp(), 1.0, atol=1e-5)
    assert torch.equal(kept == -math.inf, found.log_p == -math.inf)


@pytest.mark.parametrize(
    ("classes", "k", "column"),
    [
        (1, 1, "uint8[1]"),
        (100, 7, "uint8[7]"),  # seven bits would save nothing
        (100, 16, "uint8[14]"),
        (256, 5, "uint8[5]"),
        (257, 1, "uint16[1]"),
        (257, 8, "uint8[9]"),
        (65536, 4, "uint16[4]"),
        (65537, 3, "uint8[7]"),
        (151_936, 64, "uint8[144]"),
    ],
)
def test_narrowest_index(classes: int, k: int, column: str) -> None:
    array = Array("float32", (classes,))
    configuration = topk.configure({"k": k}, array)
    assert str(topk.columns(array, configuration)["indices"]) == column
    logits = torch.zeros(2, classes)
    logits[:, -k:] = torch.arange(k) + 1.0
    decoded = topk.decode(topk.encode(logits, configuration, {}), array, configuration, {})
    assert decoded.indices.tolist() == [[classes - 1 - j for j in range(k)]] * 2
    assert decoded.indices.dtype == torch.int64


@pytest.mark.parametrize(
    ("classes", "dtype"), [(2, "uint8"), (256, "uint8"), (257, "uint16"), (65536, "uint16"), (65537, "uint32")]
)
def test_indices_of_early_stores(classes: int, dtype: str) -> None:
    array, configuration = Array("float32", (classes,)), {"k": 1, "dtype": "float16"}
    declared = topk.columns(array, configuration)
    assert declared["indices"] == Array(dtype, (1,))
    assert topk.columns(array, {**configuration, **topk.EARLY}) == declared
    logits = torch.zeros(2, classes)
    logits[:, -1] = 1.0
    decoded = topk.decode(topk.encode(logits, configuration, {}), array, configuration, {})
    assert decoded.indices.tolist() == [[classes - 1]] * 2
    assert decoded.temperatures is None


def test_early_configurations_stay_what_they_are() -> None:
    array = Array("float32", (10,))
    complete = {**topk.EARLY, **EARLY}
    assert topk.configure(complete, array) == complete
    with pytest.raises(UsageError, match="leave these out"):
        topk.configure({**complete, "mass": 0.9}, array)


def test_no_tail_column_when_all_is_kept() -> None:
    array = Array("float32", (4,))
    assert topk.columns(array, topk.configure({"k": 4}, array)).keys() == {"indices", "values"}
    logits = torch.tensor([[1.0, 3.0, 2.0, 0.0]])
    assert targets(logits, k=4).tail is None
    wanted = logits.log_softmax(1).sort(descending=True).values
    np.testing.assert_allclose(targets(logits, k=4, dtype="float32").log_p, wanted, rtol=1e-6)


@pytest.mark.parametrize("dtype", ["float16", "uint8"])
def test_too_large_for_float16_is_held_finite(dtype: str) -> None:
    logits = torch.tensor([[0.0, -1e6, -2e6]])
    found = targets(logits, k=2, dtype=dtype)
    assert found.log_p.tolist() == [[0.0, -65504.0]]
    assert found.tail is not None
    assert found.tail.tolist() == [[-65504.0] * 3]


def test_a_byte_a_value_is_about_as_good_as_two() -> None:
    logits = torch.randn(400, 100, generator=torch.Generator().manual_seed(3)) * 2.5
    exact = logits.double().log_softmax(1).topk(16).values
    one, two = (
        (targets(logits, k=16, dtype=dtype).log_p - exact).square().mean().sqrt() for dtype in ("uint8", "float16")
    )
    assert one < 3 * two < 0.01


@pytest.mark.parametrize(
    ("configuration", "message"),
    [
        ({"k": 4000}, "k = 4000 is more than the 10 classes"),
        ({"k": 0}, "k = 0"),
        ({"k": True}, "k = True"),
        ({}, "k = None"),
        ({"k": 2, "dtype": "bfloat16"}, "float16, float32 or uint8"),
        ({"k": 2, "bytes": 3}, "does not take 'bytes'; known: anchor, dtype"),
        ({"k": 2, "mass": 1.0}, "mass = 1.0; give a probability"),
        ({"k": 2, "mass": 0.0}, "mass = 0.0"),
        ({"k": 2, "mass": math.nan}, "mass = nan"),
        ({"k": 10, "mass": 0.5}, "k to at most 9"),
        ({"k": 2, "anchor": 1.0}, "anchor = 1.0; give a temperature above 1"),
        ({"k": 2, "anchor": 0.5}, "anchor = 0.5"),
        ({"k": 2, "anchor": 1e300}, "at most 1000"),
        ({"k": 2, "anchor": 10**400}, "at most 1000"),
        ({"k": 2, "temperatures": [3.0, 3.01]}, "at 3 and at 3.01, less than 1 % more"),
        ({"k": 2, "anchor": math.inf}, "anchor = inf"),
        ({"k": 2, "anchor": "2"}, "anchor = '2'"),
        ({"k": 2, "temperatures": [0.5]}, r"temperatures = \[0.5\]"),
        ({"k": 2, "temperatures": 4.0}, "temperatures = 4.0; give a list"),
        ({"k": 2, "temperatures": [2, 3, 4, 5, 6]}, "are the most"),
        ({"k": 2, "index_bits": 5}, "index_bits = 5; 2 of 10 classes take 4"),
        ({"k": 2, "index_bits": None}, "index_bits = None"),
    ],
)
def test_bad_configurations(configuration: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        topk.configure(configuration, Array("float32", (10,)))


def test_feature_maps_are_refused() -> None:
    with pytest.raises(UsageError, match="use the dense codec"):
        topk.configure({"k": 2}, Array("float32", (8, 4, 4)))


def test_defaults() -> None:
    wanted = {"k": 2, "dtype": "float16", "index_bits": 4, "temperatures": [1.0, 2.0, 4.0]}
    assert topk.configure({"k": 2}, Array("float32", (10,))) == wanted
    anchored = topk.configure({"k": 2, "anchor": 1.5}, Array("float32", (7, 10)))
    assert anchored == {**wanted, "temperatures": [1.0, 1.5, 2.0, 4.0]}


def test_hostile_columns_are_damage() -> None:
    array = Array("float32", (1000,))
    configuration = topk.configure({"k": 2}, array)
    logits = torch.randn(3, 1000, generator=torch.Generator().manual_seed(0))
    stored = topk.encode(logits, configuration, {})
    for name in ("values", "tail"):
        hurt = stored[name].clone()
        hurt[2, 0] = math.nan
        with pytest.raises(StoreDamaged, match=f"'{name}' holds NaN"):
            topk.decode({**stored, name: hurt}, array, configuration, {})
    packed = pack(torch.tensor([[1, 2], [3, 1023], [0, 0]]), 10)
    for read in (topk.decode, topk.check):
        with pytest.raises(StoreDamaged, match="class 1023 of 1000"):
            read({**stored, "indices": packed}, array, configuration, {})
    early = {"k": 2, "dtype": "float16"}
    plain = torch.tensor([[1, 2], [3, 4000], [0, 0]], dtype=torch.int32).to(torch.uint16)
    with pytest.raises(StoreDamaged, match="class 4000 of 1000"):
        topk.decode({**topk.encode(logits, early, {}), "indices": plain}, array, early, {})


@pytest.mark.parametrize("dtype", ["float16", "uint8"])
def test_hostile_padding_is_damage(dtype: str) -> None:
    array = Array("float32", (50,))
    configuration = topk.configure({"k": 8, "mass": 0.9, "dtype": dtype}, array)
    stored = topk.encode(10.0 * torch.eye(50)[:3], configuration, {})  # one class is enough for a row
    assert (topk.decode(stored, array, configuration, {}).log_p[:, 1:] == -math.inf).all()
    full = stored["values"].clone()
    full[1, 3] = 1
    with pytest.raises(StoreDamaged, match="'indices' leaves empty"):
        topk.decode({**stored, "values": full}, array, configuration, {})
    if dtype == "float16":
        empty = stored["values"].clone()
        empty[2, 0] = -65504.0
        with pytest.raises(StoreDamaged, match="keeps no class"):
            topk.decode({**stored, "values": empty}, array, configuration, {})


def test_two_axes_of_rows() -> None:
    logits = torch.randn(4, 6, 30, generator=torch.Generator().manual_seed(5))
    found = targets(logits, k=5, anchor=8.0)
    assert found.shape == (4, 6, 30)
    same_targets(found.flatten(), targets(logits.flatten(0, 1), k=5, anchor=8.0))
