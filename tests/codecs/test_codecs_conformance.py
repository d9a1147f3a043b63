"""What every codec must do; one subclass a codec."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from typing import Any, ClassVar

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from kdcache.arrays import Array
from kdcache.codecs import CODECS, Codec, SparseLogits, fidelity
from kdcache.codecs.codec import torch_dtype
from kdcache.errors import StoreDamaged, UsageError


def logits(rows: int, classes: int, seed: int = 0) -> Tensor:
    """Float32 [rows, classes] of falling spectrum, as a trained network's are."""
    generator = torch.Generator().manual_seed(seed)
    scale = 6 * 0.8 ** torch.arange(classes)
    mixing = torch.linalg.qr(torch.randn(classes, classes, generator=torch.Generator().manual_seed(99)))[0]
    return (torch.randn(rows, classes, generator=generator) * scale) @ mixing


class CodecContract:
    name: ClassVar[str]
    configuration: ClassVar[dict[str, Any]]
    array: ClassVar[Array] = Array("float32", (20,))
    most_kl: ClassVar[float]
    golden_values: ClassVar[list[list[float]]] = [[2.0, -1.0, 0.5, 2.0], [0.0, 0.0, 0.0, 0.0]]
    golden_configuration: ClassVar[dict[str, Any]]
    golden_tables: ClassVar[dict[str, Tensor]] = {}
    golden_bytes: ClassVar[dict[str, str]]

    @property
    def codec(self) -> Codec:
        return CODECS[self.name]

    @property
    def complete(self) -> dict[str, Any]:
        return self.codec.configure(self.configuration, self.array)

    def values(self, rows: int) -> Tensor:
        return logits(rows, self.array.shape[0])

    def fit(self) -> dict[str, Tensor]:
        fitted = self.codec.fit(logits(512, self.array.shape[0], seed=1), self.complete)
        return {name: torch.from_numpy(table) for name, table in fitted.items()}

    @classmethod
    @functools.cache
    def tables(cls) -> dict[str, Tensor]:
        return cls().fit()

    def encode(self, values: Tensor) -> dict[str, Tensor]:
        return self.codec.encode(values, self.complete, self.tables())

    def decode(self, stored: Mapping[str, Tensor]) -> Tensor | SparseLogits:
        return self.codec.decode(stored, self.array, self.complete, self.tables())

    def test_configure_is_idempotent_and_plain_json(self) -> None:
        assert self.codec.configure(self.complete, self.array) == self.complete
        assert json.loads(json.dumps(self.complete)) == self.complete

    def test_unknown_key_names_the_near_miss(self) -> None:
        key = next(iter(self.configuration))
        with pytest.raises(UsageError, match=f"did you mean '{key}'"):
            self.codec.configure({f"{key}s": 1} if key != "k" else {"kk": 1}, self.array)

    @pytest.mark.parametrize("rows", [0, 1, 37])
    def test_columns_are_as_declared(self, rows: int) -> None:
        declared = self.codec.columns(self.array, self.complete)
        produced = self.encode(self.values(rows))
        assert produced.keys() == declared.keys()
        for suffix, array in declared.items():
            assert produced[suffix].dtype == torch_dtype(array.dtype)
            assert tuple(produced[suffix].shape) == (rows, *array.shape)

    def test_tables_only_if_a_pilot_is_needed(self) -> None:
        assert bool(self.tables()) == self.codec.NEEDS_PILOT

    def test_fit_and_encode_are_deterministic(self) -> None:
        first, second = self.fit(), self.fit()
        assert all(torch.equal(first[name], second[name]) for name in first)
        values = self.values(64)
        one, two = self.encode(values), self.encode(values.clone())
        assert all(torch.equal(one[suffix], two[suffix]) for suffix in one)

    @pytest.mark.parametrize("batch", [1, 3, 64])
    def test_batches_encode_as_the_whole(self, batch: int) -> None:
        values = self.values(130)
        whole = self.encode(values)
        parts = [self.encode(part) for part in values.split(batch)]
        for suffix, column in whole.items():
            assert torch.equal(torch.cat([part[suffix] for part in parts]), column)

    def test_round_trip_is_close(self) -> None:
        values = self.values(500)
        stored = self.encode(values)
        kl = fidelity(values, self.decode(stored))["kl"]
        assert kl.keys() == {"1", "2", "4"}
        assert all(-1e-9 < value <= self.most_kl for value in kl.values()), kl
        declared = self.codec.columns(self.array, self.complete).values()
        assert sum(column.nbytes for column in stored.values()) == 500 * sum(array.width for array in declared)

    def test_strided_input_and_columns(self) -> None:
        values = self.values(40)
        strided = values.repeat_interleave(2, dim=1)[:, ::2]
        assert not strided.is_contiguous()
        stored = self.encode(values)
        assert all(torch.equal(column, stored[suffix]) for suffix, column in self.encode(strided).items())
        apart = {suffix: column.repeat_interleave(2, dim=0)[::2] for suffix, column in stored.items()}
        same_targets(self.decode(apart), self.decode(stored))

    def test_missing_and_misshapen_columns_are_damage(self) -> None:
        stored = self.encode(self.values(4))
        suffix = next(iter(stored))
        with pytest.raises(StoreDamaged, match="its codec declares"):
            self.decode({**stored, "more": stored[suffix]})
        with pytest.raises(StoreDamaged, match="its codec declares"):
            self.decode({**stored, suffix: stored[suffix][:, :1]})
        with pytest.raises(StoreDamaged, match="its codec declares"):
            self.decode({**stored, suffix: stored[suffix].double()})

    def test_bytes_are_the_format(self) -> None:
        """A change here is a change of the store's format."""
        array = Array("float32", (4,))
        stored = self.codec.encode(
            torch.tensor(self.golden_values), self.codec.configure(self.golden_configuration, array), self.golden_tables
        )
        found = {
            suffix: column.contiguous().view(torch.uint8).numpy().tobytes().hex() for suffix, column in stored.items()
        }
        assert found == self.golden_bytes

    @pytest.mark.cuda
    @pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
    def test_device_gives_what_the_host_gives(self) -> None:
        values, tables = self.values(300), self.tables()
        on_device = {name: table.cuda() for name, table in tables.items()}
        there = self.codec.encode(values.cuda(), self.complete, on_device)
        assert all(column.is_cuda for column in there.values())
        decoded = self.codec.decode(there, self.array, self.complete, on_device)
        host = self.decode(self.encode(values))
        here = decoded.to("cpu")
        for temperature in (1.0, 4.0):
            first = fidelity(values, host, [temperature])["kl"]
            second = fidelity(values, here, [temperature])["kl"]
            assert second == {key: pytest.approx(value, rel=1e-2, abs=1e-6) for key, value in first.items()}


def same_targets(first: Tensor | SparseLogits, second: Tensor | SparseLogits) -> None:
    if isinstance(first, Tensor):
        assert isinstance(second, Tensor)
        assert torch.equal(first, second)
        return
    assert isinstance(second, SparseLogits)
    assert torch.equal(first.indices, second.indices)
    assert torch.equal(first.log_p, second.log_p)
    assert first.tail is not None
    assert second.tail is not None
    assert torch.equal(first.tail, second.tail)


class TestDenseFloat32(CodecContract):
    name = "dense"
    configuration: ClassVar = {"dtype": "float32"}
    most_kl = 0.0
    golden_configuration: ClassVar = {"dtype": "float32"}
    golden_bytes: ClassVar = {"": "00000040000080bf0000003f00000040" + "00" * 16}


class TestDenseFloat16(CodecContract):
    name = "dense"
    configuration: ClassVar = {"dtype": "float16"}
    most_kl = 1e-5
    golden_configuration: ClassVar = {"dtype": "float16"}
    golden_bytes: ClassVar = {"": "004000bc00380040" + "00" * 8}


class TestDenseBfloat16(CodecContract):
    name = "dense"
    configuration: ClassVar = {"dtype": "bfloat16"}
    most_kl = 1e-3
    golden_configuration: ClassVar = {"dtype": "bfloat16"}
    golden_bytes: ClassVar = {"": "004080bf003f0040" + "00" * 8}


class TestTopk(CodecContract):
    name = "topk"
    configuration: ClassVar = {"k": 6}
    most_kl = 0.2
    golden_configuration: ClassVar = {"k": 2}
    golden_bytes: ClassVar = {"indices": "00030001", "values": "92ba92ba8cbd8cbd", "tail": "24c280383dc08cbd00008cb9"}


class TestLowrank(CodecContract):
    name = "lowrank"
    configuration: ClassVar = {"bytes": 12}
    most_kl = 0.02
    golden_configuration: ClassVar = {"bytes": 4}
    golden_tables: ClassVar = {
        "basis": torch.tensor([[0.5, 0.5, -0.5, -0.5], [0.5, -0.5, 0.5, -0.5], [0.5, -0.5, -0.5, 0.5]]),
        "mean": torch.tensor([0.25, -0.25, 0.0, 0.0]),
        "step": torch.tensor([0.25, 0.5, 1.0]),
        "bits": torch.tensor([12, 6, 3], dtype=torch.uint8),
    }
    # Row 0: coefficients -0.75, 0.5, 2 are codes 2045, 33, 6 in 12, 6 and 3 bits, the least significant bit first.
    golden_bytes: ClassVar = {"": "fd171a0000f80d00"}


@pytest.mark.parametrize("contract", [TestDenseFloat16(), TestDenseBfloat16(), TestTopk(), TestLowrank()])
@settings(max_examples=15, deadline=None)
@given(st.integers(0, 9), st.integers(0, 10_000), st.sampled_from([1e-3, 1.0, 10.0]))
def test_finite_logits_decode_to_finite_targets(contract: CodecContract, rows: int, seed: int, scale: float) -> None:
    decoded = contract.decode(contract.encode(logits(rows, contract.array.shape[0], seed) * scale))
    assert len(decoded) == rows
    parts = [decoded] if isinstance(decoded, Tensor) else [*decoded.log_probs(1.0), *decoded.log_probs(4.0)]
    assert all(part.isfinite().all() for part in parts)
