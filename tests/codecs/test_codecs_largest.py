from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kdcache.codecs.largest import largest


@settings(max_examples=40, deadline=None)
@given(st.lists(st.sampled_from([-2.0, -1.5, -0.0, 0.0, 1.0, 3e-41, 7.0]), min_size=1, max_size=30), st.data())
def test_order_is_that_of_a_stable_sort(row: list[float], data: st.DataObject) -> None:
    k = data.draw(st.integers(1, len(row)))
    logits = torch.tensor([row])
    wanted = np.argsort(-logits.numpy()[0].astype(np.float64), kind="stable")[:k]
    assert largest(logits, k)[0].tolist() == wanted.tolist()


@pytest.mark.parametrize("classes", [64, 640, 1001, 65_536, 70_001])
@pytest.mark.parametrize("k", [1, 3, 10])
@pytest.mark.parametrize("levels", [2, 50, 10**9])
def test_blocks_lose_nothing(classes: int, k: int, levels: int) -> None:
    """Few levels make ties within blocks, between them and across the k-th place."""
    values = np.random.default_rng(classes + k).integers(-levels, levels, (3, classes)).astype(np.float32) / 8
    values[1] = values[1, 0]  # all alike
    values[2] = -np.abs(values[2])
    values[2, classes - k :] = 1.0  # the last, short block holds them all
    wanted = np.argsort(-values, axis=1, kind="stable")[:, :k]
    assert largest(torch.from_numpy(values), k).tolist() == wanted.tolist()


def test_no_rows() -> None:
    assert largest(torch.zeros(0, 1000), 3).shape == (0, 3)
