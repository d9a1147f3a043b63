from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from kdcache.arrays import Array
from kdcache.codecs import lowrank
from kdcache.errors import StoreDamaged, TeacherError, UsageError

CLASSES = 12
ARRAY = Array("float32", (CLASSES,))


def plane(rows: int, seed: int = 0) -> Tensor:
    """Logits in three dimensions of twelve, of deviations 8, 2 and 0.5, and an arbitrary mean per row."""
    generator = torch.Generator().manual_seed(seed)
    coefficients = torch.randn(rows, 3, generator=generator) * torch.tensor([8.0, 2.0, 0.5])
    vectors = torch.randn(CLASSES, 3, generator=torch.Generator().manual_seed(7))
    axes = torch.linalg.qr(vectors - vectors.mean(0))[0].T
    return coefficients @ axes + torch.randn(rows, 1, generator=generator) * 5


def fitted(pilot: Tensor, size: int) -> dict[str, Tensor]:
    return {name: torch.from_numpy(table) for name, table in lowrank.fit(pilot, {"bytes": size}).items()}


def test_tables() -> None:
    tables = fitted(plane(2000), 4)
    assert {name: table.dtype for name, table in tables.items()} == {
        "basis": torch.float32,
        "mean": torch.float32,
        "step": torch.float32,
        "bits": torch.uint8,
    }
    # Bits follow the variances 64, 4 and 1/4: two bits between neighbours, thirty-two in all.
    assert tables["bits"].sum() == 32
    assert tables["bits"].tolist() in ([12, 11, 9], [12, 10, 10])
    basis = tables["basis"].double()
    np.testing.assert_allclose(basis @ basis.T, np.eye(3), atol=1e-6)
    np.testing.assert_allclose(basis.sum(1), 0.0, atol=1e-6)
    assert (basis.gather(1, basis.abs().argmax(1, keepdim=True)) > 0).all()


def test_water_filling_by_hand() -> None:
    assert lowrank.share(torch.tensor([16.0, 4.0, 0.5], dtype=torch.float64), 4).tolist() == [3, 1, 0]
    assert lowrank.share(torch.tensor([1.0, 1.0], dtype=torch.float64), 100).tolist() == [12, 12]


def test_one_bit_of_a_gaussian_steps_where_theory_says() -> None:
    values = torch.randn(20_000, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    step = lowrank.search(values, torch.tensor([1]))
    assert float(step) == pytest.approx(2 * math.sqrt(2 / math.pi), rel=0.08)  # Lloyd and Max: +-0.798


def test_decoded_logits_are_centred_and_near() -> None:
    tables, values = fitted(plane(2000), 4), plane(300, seed=1)
    stored = lowrank.encode(values, {"bytes": 4}, tables)
    decoded = lowrank.decode(stored, ARRAY, {"bytes": 4}, tables)
    assert decoded.dtype == torch.float32
    np.testing.assert_allclose(decoded.mean(1), 0.0, atol=1e-5)
    error = (decoded - (values - values.mean(1, keepdim=True))).square().sum(1).sqrt()
    assert error.median() < 0.02


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(1, 16), min_size=1, max_size=11), st.integers(0, 10_000))
def test_any_widths_pack_and_unpack(widths: list[int], seed: int) -> None:
    """Logits at the middle of known cells, on axes orthogonal to a row's mean: each code must be the one put in."""
    rank, size = len(widths), (sum(widths) + 7) // 8
    codes = np.stack([np.random.default_rng(seed + j).integers(0, 1 << n, 6) for j, n in enumerate(widths)], 1)
    basis = torch.linalg.qr(torch.eye(12) - 1 / 12)[0].T[:rank].contiguous()
    tables = {
        "basis": basis,
        "mean": torch.zeros(12),
        "step": torch.ones(rank),
        "bits": torch.tensor(widths, dtype=torch.uint8),
    }
    centres = torch.from_numpy(codes) - 2.0 ** (torch.tensor(widths) - 1) + 0.5
    logits = centres.double() @ basis.double()
    stored = lowrank.encode(logits, {"bytes": size}, tables)
    row_bits = np.unpackbits(stored[""].numpy(), axis=1, bitorder="little")
    wanted = np.concatenate([codes[:, [j]] >> np.arange(n) & 1 for j, n in enumerate(widths)], 1)
    np.testing.assert_array_equal(row_bits[:, : wanted.shape[1]], wanted)
    assert not row_bits[:, wanted.shape[1] :].any()
    decoded = lowrank.decode(stored, Array("float32", (12,)), {"bytes": size}, tables)
    np.testing.assert_allclose(decoded, logits, rtol=1e-5, atol=0.05)


def test_outliers_are_clipped_not_wrapped() -> None:
    tables = fitted(plane(2000), 4)
    far = lowrank.encode(plane(50, seed=2) * 1000, {"bytes": 4}, tables)
    decoded = lowrank.decode(far, ARRAY, {"bytes": 4}, tables)
    signs = (decoded - tables["mean"]) @ tables["basis"].T
    truth = plane(50, seed=2) * 1000
    expected = (truth - truth.mean(1, keepdim=True) - tables["mean"]) @ tables["basis"].T
    assert torch.equal(signs.sign(), expected.sign())


@pytest.mark.parametrize(
    ("size", "classes", "message"),
    [
        (3, 100, "give 4 to 149"),
        (150, 100, "give 4 to 149"),
        (None, 100, "bytes = None"),
        (8.0, 100, "bytes = 8.0"),
        (4, 3, "nothing to gain on 3 classes"),
        (4, 1, "use the dense codec"),
    ],
)
def test_bad_configurations(size: object, classes: int, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        lowrank.configure({} if size is None else {"bytes": size}, Array("float32", (classes,)))


def test_pilots_that_cannot_be_fitted() -> None:
    with pytest.raises(UsageError, match="the pilot has 31 rows and the fit needs 32"):
        lowrank.fit(plane(31), {"bytes": 4})
    with pytest.raises(UsageError, match="all rows of the pilot are alike"):
        lowrank.fit(torch.ones(64, 12), {"bytes": 4})
    pilot = plane(64)
    pilot[5, 5] = math.nan
    with pytest.raises(TeacherError, match="NaN"):
        lowrank.fit(pilot, {"bytes": 4})


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("bits", lambda bits: bits + 1, "35 to a row"),
        ("bits", lambda bits: torch.tensor([20, 1, 1], dtype=torch.uint8), "1 to 20 bits"),
        ("bits", lambda bits: bits * 0, "0 to 0 bits"),
        ("bits", lambda bits: bits.float(), "table 'bits' is torch.float32"),
        ("bits", lambda bits: bits[:2], "2 components needs"),
        ("basis", lambda basis: basis[:, :4], "table 'basis'"),
        ("step", lambda step: step / 0, "'step' holds NaN or infinity"),
        ("mean", lambda mean: mean.reshape(1, -1), "table 'mean'"),
    ],
)
def test_hostile_tables_are_damage(name: str, change: object, message: str) -> None:
    tables = fitted(plane(100), 4)
    stored = lowrank.encode(plane(3), {"bytes": 4}, tables)
    with pytest.raises(StoreDamaged, match=message):
        lowrank.decode(stored, ARRAY, {"bytes": 4}, {**tables, name: change(tables[name])})  # type: ignore[operator]


def test_missing_tables_are_damage() -> None:
    with pytest.raises(StoreDamaged, match="lowrank needs basis"):
        lowrank.check({"": torch.zeros(2, 4, dtype=torch.uint8)}, ARRAY, {"bytes": 4}, {})
