from __future__ import annotations

import pytest
import torch

from kdcache.codecs import SampledLogits, flat
from kdcache.errors import UsageError


def targets() -> SampledLogits:
    indices = torch.arange(24).reshape(2, 4, 3)
    return SampledLogits(indices, torch.full((2, 4, 3), 1 / 3), 2.0, 30)


def test_shape_rows_and_length() -> None:
    found = targets()
    assert found.shape == (2, 4, 30)
    assert len(found) == 2
    assert found.device == torch.device("cpu")
    assert found[1:].shape == (1, 4, 30)
    assert found[torch.tensor([True, False])].indices.tolist() == found.indices[:1].tolist()
    assert found[torch.tensor([1, 0])].indices[0, 0, 0] == 12


def test_flatten_and_to_keep_all_else() -> None:
    for found in (targets().flatten(), flat(targets()), targets().to("cpu").flatten()):
        assert isinstance(found, SampledLogits)
        assert found.shape == (8, 30)
        assert found.temperature == 2.0
        assert found.indices.tolist() == torch.arange(24).reshape(8, 3).tolist()
        assert found.weights.shape == (8, 3)


@pytest.mark.parametrize("shape", [(5,), (2, 4), (2, 3, 1)])
def test_misshapen(shape: tuple[int, ...]) -> None:
    with pytest.raises(UsageError, match="must both be"):
        SampledLogits(
            torch.zeros(shape, dtype=torch.int64), torch.zeros(2, 3) if shape != (5,) else torch.zeros(5), 1.0, 9
        )
