from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kdcache.codecs.draws import draws
from kdcache.keyed import hash_places, keyed_hash

INT64 = st.integers(-(2**63), 2**63 - 1)


@given(st.integers(0, 2**63 - 1), st.lists(INT64, max_size=5), st.integers(0, 7), st.integers(0, 1000))
def test_the_bits_of_keyed_hash(seed: int, keys: list[int], count: int, first: int) -> None:
    found = draws(seed, torch.tensor(keys, dtype=torch.int64), count, first)
    assert found.shape == (len(keys), count)
    assert found.dtype == torch.float64
    rows = keyed_hash(f"kdcache-draws-1|{seed}", np.array(keys, dtype=np.int64))
    for row, values in zip(rows, found, strict=True):
        bits = hash_places(row, np.arange(first + 1, first + count + 1, dtype=np.uint64))
        assert values.tolist() == [int(number >> np.uint64(11)) / 2**53 for number in bits]


def test_golden_vector() -> None:
    found = draws(0, torch.tensor([0, 1, -1, 2**62]), 2)
    assert found.tolist() == [
        [0.4838074942833098, 0.9322417750803881],
        [0.013750239406437492, 0.729947862414312],
        [0.19824646831734272, 0.7532545043331571],
        [0.4491742836150784, 0.14806117293009546],
    ]


def test_a_row_has_its_draws_wherever_it_stands() -> None:
    keys = torch.arange(24).reshape(2, 3, 4) * 1000
    whole = draws(5, keys, 9)
    assert whole.shape == (2, 3, 4, 9)
    assert torch.equal(draws(5, keys[1, 2, 3:], 9)[0], whole[1, 2, 3])
    assert torch.equal(draws(5, keys, 4, first=5), whole[..., 5:])


def test_uniform_and_independent() -> None:
    """Means, variances and neighbours' correlations of a million draws, within 5 standard deviations."""
    found = draws(3, torch.arange(2000), 500)
    assert 0 <= float(found.min()) < 1e-5
    assert 1 - 1e-5 < float(found.max()) < 1
    centred = (found - 0.5) * 12**0.5
    count = centred.numel()
    assert abs(float(centred.mean())) < 5 / count**0.5
    assert abs(float(centred.square().mean()) - 1) < 5 * (0.8 / count) ** 0.5
    for first, second in ((centred[1:], centred[:-1]), (centred[:, 1:], centred[:, :-1])):
        assert abs(float((first * second).mean())) < 5 / first.numel() ** 0.5
    other = (draws(4, torch.arange(2000), 500) - 0.5) * 12**0.5
    assert abs(float((centred * other).mean())) < 5 / count**0.5


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_device_gives_what_the_host_gives() -> None:
    keys = torch.arange(100) - 50
    assert torch.equal(draws(1, keys.cuda(), 20).cpu(), draws(1, keys, 20))
