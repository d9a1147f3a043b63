from __future__ import annotations

import math

import numpy as np
import pytest
import torch

import kdcache.codecs
from kdcache.arrays import Array
from kdcache.codecs import SparseLogits, fidelity, topk


def test_dense_by_hand() -> None:
    # p = (3/4, 1/4) against (1/2, 1/2).
    found = fidelity(torch.tensor([[math.log(3), 0.0]]), torch.zeros(1, 2), temperatures=[1])
    assert found == {"kl": {"1": pytest.approx(0.75 * math.log(1.5) + 0.25 * math.log(0.5))}}


def test_sparse_by_hand() -> None:
    # p = (4, 2, 1, 1) / 8 with one class kept: the other half is spread over three.
    logits = torch.tensor([[4.0, 2.0, 1.0, 1.0]]).log()
    rest = np.log([2 / 8, 1 / 8, 1 / 8])
    tail = torch.tensor([[rest.mean(), rest.var(), math.log(1 / 2)]])
    targets = SparseLogits(torch.tensor([[0]]), torch.tensor([[math.log(1 / 2)]]), tail, 4)
    wanted = 0.25 * math.log(0.25 * 6) + 2 * 0.125 * math.log(0.125 * 6)
    assert fidelity(logits, targets, [1])["kl"]["1"] == pytest.approx(wanted, abs=1e-6)


def test_complete_targets_lose_nothing() -> None:
    logits = torch.randn(30, 6, generator=torch.Generator().manual_seed(0)) * 3
    configuration = {"k": 6, "dtype": "float32"}
    targets = topk.decode(topk.encode(logits, configuration, {}), Array("float32", (6,)), configuration, {})
    assert all(abs(kl) < 1e-8 for kl in fidelity(logits, targets)["kl"].values())
    assert fidelity(logits, logits) == {"kl": {"1": 0.0, "2": 0.0, "4": 0.0}}


def test_one_door() -> None:
    assert kdcache.codecs.__all__ == sorted(kdcache.codecs.__all__)
    assert all(hasattr(kdcache.codecs, name) for name in kdcache.codecs.__all__)
