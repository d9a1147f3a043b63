from __future__ import annotations

import math
from typing import ClassVar

import numpy as np
import pytest
import torch
from codec_contract import CodecContract, logits
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from kdcache.arrays import Array
from kdcache.codecs import fidelity, lowrank
from kdcache.errors import StoreDamaged, TeacherError, UsageError

CLASSES = 12
ARRAY = Array("float32", (CLASSES,))


class TestContract(CodecContract):
    name = "lowrank"
    configuration: ClassVar = {"bytes": 12}
    most_kl = 0.003
    golden_configuration: ClassVar = {"bytes": 4}
    golden_tables: ClassVar = {
        "basis": torch.tensor([[0.5, 0.5, -0.5, -0.5], [0.5, -0.5, 0.5, -0.5], [0.5, -0.5, -0.5, 0.5]]),
        "mean": torch.tensor([0.25, -0.25, 0.0, 0.0]),
        "step": torch.tensor([0.25, 0.5, 1.0]),
        "bits": torch.tensor([12, 6, 3], dtype=torch.uint8),
        "curve": torch.tensor([0.0, 0.05, 0.25]),
    }
    # Coefficients -0.625, 0.750703, 2.665969 and 511.875, -23.118670, 1.535404, whose codes are 2045, 33, 6 and
    # 4095, 0, 5 in 12, 6 and 3 bits, the least significant bit first; any mean of a row.
    golden_values: ClassVar = [
        [1.645836, -2.270836, -0.645133, 1.270133],
        [248.395867, 269.479133, -265.264537, -240.610463],
    ]
    golden_bytes: ClassVar = {"": "fd171a00ff0f1400"}


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
        "curve": torch.float32,
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


def test_tables_without_a_curve_have_even_levels() -> None:
    """Those of the first stores. Codes 2045, 33, 6 and 4095, 0, 5 of levels (c + 1/2 - half) * step."""
    tables = {name: table for name, table in TestContract.golden_tables.items() if name != "curve"}
    values = torch.tensor([[1.5625, -2.1875, -0.5625, 1.1875], [249.0625, 262.8125, -264.5625, -247.3125]])
    stored = lowrank.encode(values, {"bytes": 4}, tables)
    assert stored[""].numpy().tobytes().hex() == "fd171a00ff0f1400"
    decoded = lowrank.decode(stored, Array("float32", (4,)), {"bytes": 4}, tables)
    np.testing.assert_allclose(decoded, values - values.mean(1, keepdim=True), atol=1e-4)


def test_the_document_s_level() -> None:
    """FORMAT.md: code 6 of 3 bits, step 1/2, curve 1/4 is 1.332985."""
    tables = {
        "basis": torch.tensor([[1.0, -1.0]]) / math.sqrt(2),
        "mean": torch.zeros(2),
        "step": torch.tensor([0.5]),
        "curve": torch.tensor([0.25]),
        "bits": torch.tensor([3], dtype=torch.uint8),
    }
    stored = {"": torch.tensor([[6, 0, 0, 0]], dtype=torch.uint8)}
    decoded = lowrank.decode(stored, Array("float32", (2,)), {"bytes": 4}, tables)
    assert decoded[0, 0].item() * math.sqrt(2) == pytest.approx(1.332985, abs=1e-6)


def test_temperatures_move_the_error() -> None:
    """Rounding for T = 4 alone must win there and lose at T = 1 against rounding for T = 1 alone."""
    pilot, values, array = logits(512, 20, seed=1), logits(500, 20), Array("float32", (20,))
    found = {}
    for temperature in (1, 4):
        configuration = lowrank.configure({"bytes": 8, "temperatures": [temperature]}, array)
        assert lowrank.configure(configuration, array) == configuration
        tables = {name: torch.from_numpy(table) for name, table in lowrank.fit(pilot, configuration).items()}
        stored = lowrank.encode(values, configuration, tables)
        found[temperature] = fidelity(values, lowrank.decode(stored, array, configuration, tables), (1, 4))["kl"]
    assert found[4]["4"] < found[1]["4"]
    assert found[1]["1"] < found[4]["1"]


@pytest.mark.parametrize("wrong", [[], [0], [True], "1", [1.0] * 9, [math.nan], 2.0])
def test_bad_temperatures(wrong: object) -> None:
    with pytest.raises(UsageError, match=r"temperatures = .*give one to eight numbers"):
        lowrank.configure({"bytes": 8, "temperatures": wrong}, Array("float32", (20,)))


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
        (3, 100, "give 4 to 198"),
        (199, 100, "give 4 to 198"),
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
        ("curve", lambda curve: curve - 1, "table 'curve' bends"),
        ("curve", lambda curve: curve + 1, "0 to 16 can be"),
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
