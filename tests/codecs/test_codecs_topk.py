from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kdcache.arrays import Array
from kdcache.codecs import topk
from kdcache.errors import StoreDamaged, UsageError


def test_values_by_hand() -> None:
    # Logits log 8, log 4, log 2, log 1, log 1: Z = 16.
    logits = torch.tensor([[0.0, math.log(4), math.log(2), math.log(8), 0.0]])
    stored = topk.encode(logits, {"k": 2, "dtype": "float32"}, {})
    assert stored["indices"].tolist() == [[3, 1]]
    np.testing.assert_allclose(stored["values"], [[math.log(8 / 16), math.log(4 / 16)]], rtol=1e-6)
    rest = np.log([2 / 16, 1 / 16, 1 / 16])
    np.testing.assert_allclose(stored["tail"], [[rest.mean(), rest.var(), math.log(4 / 16)]], rtol=1e-6)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.sampled_from([-2.0, -1.5, -0.0, 0.0, 1.0, 3e-41, 7.0]), min_size=1, max_size=30), st.data())
def test_order_is_that_of_a_stable_sort(row: list[float], data: st.DataObject) -> None:
    k = data.draw(st.integers(1, len(row)))
    logits = torch.tensor([row])
    wanted = np.argsort(-logits.numpy()[0].astype(np.float64), kind="stable")[:k]
    assert topk.largest(logits, k)[0].tolist() == wanted.tolist()


@settings(max_examples=20, deadline=None)
@given(st.integers(2, 300), st.integers(0, 10_000), st.sampled_from([0.1, 3.0, 20.0]), st.data())
def test_matches_a_float64_reference(classes: int, seed: int, scale: float, data: st.DataObject) -> None:
    k = data.draw(st.integers(1, classes - 1))
    logits = np.random.default_rng(seed).normal(0, scale, (3, classes)).astype(np.float32)
    stored = topk.encode(torch.from_numpy(logits), {"k": k, "dtype": "float32"}, {})
    wide = logits.astype(np.float64)
    log_p = wide - np.log(np.exp(wide).sum(1, keepdims=True))
    order = np.argsort(-wide, axis=1, kind="stable")
    kept, rest = (np.take_along_axis(log_p, part, 1) for part in (order[:, :k], order[:, k:]))
    assert stored["indices"].tolist() == order[:, :k].tolist()
    np.testing.assert_allclose(stored["values"], kept, rtol=1e-5, atol=1e-5)
    reference = np.stack([rest.mean(1), rest.var(1), np.log(np.exp(rest).sum(1))], 1)
    np.testing.assert_allclose(stored["tail"], reference, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("classes", "dtype"), [(2, "uint8"), (256, "uint8"), (257, "uint16"), (65536, "uint16"), (65537, "uint32")]
)
def test_narrowest_index(classes: int, dtype: str) -> None:
    array, configuration = Array("float32", (classes,)), {"k": 1, "dtype": "float16"}
    assert topk.columns(array, configuration)["indices"] == Array(dtype, (1,))
    logits = torch.zeros(2, classes)
    logits[:, -1] = 1.0
    decoded = topk.decode(topk.encode(logits, configuration, {}), array, configuration, {})
    assert decoded.indices.tolist() == [[classes - 1]] * 2
    assert decoded.indices.dtype == torch.int64


def test_no_tail_column_when_all_is_kept() -> None:
    assert topk.columns(Array("float32", (4,)), {"k": 4, "dtype": "float16"}).keys() == {"indices", "values"}


def test_too_large_for_float16_is_held_finite() -> None:
    logits = torch.tensor([[0.0, -1e6, -2e6]])
    stored = topk.encode(logits, {"k": 2, "dtype": "float16"}, {})
    assert stored["values"].tolist() == [[0.0, -65504.0]]
    assert stored["tail"].tolist() == [[-65504.0, 0.0, -65504.0]]


@pytest.mark.parametrize(
    ("configuration", "message"),
    [
        ({"k": 4000}, "k = 4000 is more than the 10 classes"),
        ({"k": 0}, "k = 0"),
        ({"k": True}, "k = True"),
        ({}, "k = None"),
        ({"k": 2, "dtype": "bfloat16"}, "float16 or float32"),
        ({"k": 2, "bytes": 3}, "does not take 'bytes'; known: dtype, k"),
    ],
)
def test_bad_configurations(configuration: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        topk.configure(configuration, Array("float32", (10,)))


def test_feature_maps_are_refused() -> None:
    with pytest.raises(UsageError, match="use the dense codec"):
        topk.configure({"k": 2}, Array("float32", (8, 4, 4)))


def test_default_is_float16() -> None:
    assert topk.configure({"k": 2}, Array("float32", (10,))) == {"k": 2, "dtype": "float16"}


def test_hostile_columns_are_damage() -> None:
    array, configuration = Array("float32", (1000,)), {"k": 2, "dtype": "float16"}
    stored = topk.encode(torch.randn(3, 1000, generator=torch.Generator().manual_seed(0)), configuration, {})
    indices = stored["indices"].to(torch.int32)
    indices[1, 1] = 4000
    with pytest.raises(StoreDamaged, match="class 4000 of 1000"):
        topk.decode({**stored, "indices": indices.to(torch.uint16)}, array, configuration, {})
    tail = stored["tail"].clone()
    tail[2, 0] = math.nan
    with pytest.raises(StoreDamaged, match="'tail' holds NaN"):
        topk.decode({**stored, "tail": tail}, array, configuration, {})
