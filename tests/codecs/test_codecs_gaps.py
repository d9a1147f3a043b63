from __future__ import annotations

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kdcache.codecs.gaps import from_gaps, to_gaps


def test_codes_by_hand() -> None:
    # Largest step 4: (c / 255)^2 * 4 = 1 for c = 127.5, taken as 128, which leads to -5.0079; from there 0.9921 to -6.
    values = torch.tensor([[0.0, -4.0, -5.0, -6.0]])
    codes, scale = to_gaps(values, torch.ones(1, 4, dtype=torch.bool))
    assert scale.tolist() == [[0.0, 4.0]]
    assert codes.tolist() == [[0, 255, 128, 127]]
    np.testing.assert_allclose(
        from_gaps(codes, scale), [[0, -4, -4 - 4 * (128 / 255) ** 2, -4 - 4 * (128**2 + 127**2) / 255**2]], rtol=1e-6
    )


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 130),
    st.integers(0, 10_000),
    st.sampled_from([1e-4, 0.1, 3.0, 50.0]),
    st.lists(st.integers(1, 3), max_size=2),
)
def test_errors_do_not_add_up(count: int, seed: int, scale: float, lead: list[int]) -> None:
    random = np.random.default_rng(seed)
    values = torch.from_numpy(-np.sort(random.exponential(scale, (*lead, 5, count)), axis=-1).astype(np.float32))
    present = torch.arange(count) < torch.from_numpy(random.integers(1, count + 1, values.shape[:-1]))[..., None]
    codes, kept = to_gaps(values, present)
    found = from_gaps(codes, kept)
    assert codes.shape == values.shape
    assert (codes[~present] == 0).all()
    assert (found.diff(dim=-1) <= 0).all()
    largest = kept[..., 1:].float()
    # Half a level at the largest step is its 1/255th part; float16 rounds the first value and that step, the top code.
    allowed = largest / 255 + (values[..., :1].abs() + largest) * 2**-10 + 1e-7
    assert ((found - values).abs() <= allowed)[present].all()


def test_one_value_and_equal_values() -> None:
    codes, scale = to_gaps(torch.tensor([[-1.5]]), torch.ones(1, 1, dtype=torch.bool))
    assert (codes.tolist(), from_gaps(codes, scale).tolist()) == ([[0]], [[-1.5]])
    codes, scale = to_gaps(torch.full((2, 3), -2.0), torch.ones(2, 3, dtype=torch.bool))
    assert from_gaps(codes, scale).tolist() == [[-2.0] * 3] * 2
