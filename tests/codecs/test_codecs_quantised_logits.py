from __future__ import annotations

import pytest
import torch

from kdcache.codecs import QuantisedLogits, flat
from kdcache.errors import UsageError


def targets() -> QuantisedLogits:
    codes = torch.arange(24, dtype=torch.uint8).reshape(2, 4, 3)
    return QuantisedLogits(codes, torch.full((2, 4, 1), 0.5), torch.full((2, 4, 1), -2.0))


def test_dense_by_hand() -> None:
    found = targets().dense()
    assert found.dtype == torch.float32
    assert found[0, 1].tolist() == [-0.5, 0.0, 0.5]
    assert torch.equal(targets().codes, torch.arange(24, dtype=torch.uint8).reshape(2, 4, 3))


def test_shape_rows_and_length() -> None:
    found = targets()
    assert found.shape == (2, 4, 3)
    assert (len(found), found.num_classes, found.device) == (2, 3, torch.device("cpu"))
    assert torch.equal(found[1:].dense(), found.dense()[1:])
    assert torch.equal(found[torch.tensor([1, 0])].dense(), found.dense()[[1, 0]])
    assert torch.equal(found[torch.tensor([False, True])].dense(), found.dense()[1:])


def test_flatten_and_to() -> None:
    for found in (targets().flatten(), flat(targets()), targets().to("cpu").flatten()):
        assert isinstance(found, QuantisedLogits)
        assert found.shape == (8, 3)
        assert torch.equal(found.dense(), targets().dense().flatten(0, 1))


@pytest.mark.parametrize(("codes", "rows"), [((3,), ()), ((2, 3), (3, 1)), ((2, 3), (2,)), ((2, 3), (2, 3))])
def test_misshapen(codes: tuple[int, ...], rows: tuple[int, ...]) -> None:
    with pytest.raises(UsageError, match=r"must be \[..., C\]"):
        QuantisedLogits(torch.zeros(codes, dtype=torch.uint8), torch.zeros(rows), torch.zeros(rows))
