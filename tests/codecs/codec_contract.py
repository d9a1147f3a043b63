"""What every codec of logits must do: subclass `CodecContract` as `Test…` in the codec's own test file."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Mapping
from typing import Any, ClassVar

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from kdcache.arrays import Array
from kdcache.codecs import CODECS, Codec, QuantisedLogits, SampledLogits, SparseLogits, Targets, fidelity, flat
from kdcache.codecs.codec import torch_dtype
from kdcache.errors import StoreDamaged, UsageError

__all__ = ["CodecContract", "estimate", "kl", "logits", "same_targets"]


def logits(rows: int, classes: int, seed: int = 0) -> Tensor:
    """Float32 [rows, classes] of falling spectrum, as a trained network's are."""
    generator = torch.Generator().manual_seed(seed)
    scale = 6 * 0.8 ** torch.arange(classes)
    mixing = torch.linalg.qr(torch.randn(classes, classes, generator=torch.Generator().manual_seed(99)))[0]
    return (torch.randn(rows, classes, generator=generator) * scale) @ mixing


def estimate(targets: SampledLogits) -> Tensor:
    """The estimated distribution as float64 [..., C]."""
    dense = torch.zeros(targets.shape, dtype=torch.float64)
    return dense.scatter_add(-1, targets.indices, targets.weights.double())


def same_targets(first: Targets, second: Targets) -> None:
    """Equal to the last bit, whatever kind they are."""
    assert type(first) is type(second)
    if isinstance(first, Tensor):
        assert torch.equal(first, second)
        return
    for field in dataclasses.fields(first):
        one, two = getattr(first, field.name), getattr(second, field.name)
        assert torch.equal(one, two) if isinstance(one, Tensor) else one == two, field.name


def kl(values: Tensor, decoded: Targets, temperatures: tuple[float, ...] = (1, 2, 4)) -> dict[str, float]:
    dense = decoded.dense() if isinstance(decoded, QuantisedLogits) else decoded
    return fidelity(values, dense, temperatures)["kl"]


class CodecContract:
    """Class variables say which codec is meant; `golden_bytes` are of `golden_values` under keys 0, 1, …"""

    name: ClassVar[str]
    configuration: ClassVar[dict[str, Any]]
    array: ClassVar[Array] = Array("float32", (20,))
    most_kl: ClassVar[float | None]  # None: the codec is a random estimate, judged by its mean over many keys
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

    def keys(self, rows: int) -> Tensor:
        """Distinct, in no order, some of them large: as the ids of samples are."""
        return torch.arange(rows) * 7919 % 10_007 + 2**40

    def fit(self) -> dict[str, Tensor]:
        fitted = self.codec.fit(logits(512, self.array.shape[0], seed=1), self.complete)
        return {name: torch.from_numpy(table) for name, table in fitted.items()}

    @classmethod
    @functools.cache
    def tables(cls) -> dict[str, Tensor]:
        return cls().fit()

    def encode(self, values: Tensor, keys: Tensor | None = None) -> dict[str, Tensor]:
        keys = self.keys(len(values)) if keys is None else keys
        return self.codec.encode(values, self.complete, self.tables(), keys)

    def decode(self, stored: Mapping[str, Tensor]) -> Targets:
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
        one = self.encode(values)
        torch.rand(3)  # the global generator is no part of it
        two = self.encode(values.clone())
        assert all(torch.equal(one[suffix], two[suffix]) for suffix in one)

    def test_keys_matter_to_random_codecs_alone(self) -> None:
        values = self.values(64)
        one, two = self.encode(values), self.encode(values, self.keys(64) + 1)
        assert all(torch.equal(one[suffix], two[suffix]) for suffix in one) == (self.most_kl is not None)

    @pytest.mark.parametrize("batch", [1, 3, 64])
    def test_batches_encode_as_the_whole(self, batch: int) -> None:
        values, keys = self.values(130), self.keys(130)
        whole = self.encode(values, keys)
        parts = [self.encode(*part) for part in zip(values.split(batch), keys.split(batch), strict=True)]
        for suffix, column in whole.items():
            assert torch.equal(torch.cat([part[suffix] for part in parts]), column)

    def test_positions_encode_and_decode_as_rows(self) -> None:
        """Arrays (P, C): the columns of [B, P, C] are those of the rows [B * P, C], and decode to [B, P, ...]."""
        rows, positions, classes = 5, 7, self.array.shape[-1]
        array = Array(self.array.dtype, (positions, classes))
        configuration = self.codec.configure(self.configuration, array)
        values, keys = self.values(rows * positions), self.keys(rows * positions)
        flat_columns = self.codec.encode(values, configuration, self.tables(), keys)
        stored = self.codec.encode(
            values.reshape(rows, *array.shape), configuration, self.tables(), keys.reshape(rows, positions)
        )
        declared = self.codec.columns(array, configuration)
        assert stored.keys() == declared.keys() == flat_columns.keys()
        for suffix, column in stored.items():
            assert tuple(column.shape) == (rows, *declared[suffix].shape)
            assert torch.equal(column.flatten(0, 1), flat_columns[suffix])
            assert torch.equal(column.flatten(0, 1), self.encode(values, keys)[suffix])
        decoded = self.codec.decode(stored, array, configuration, self.tables())
        assert tuple(decoded.shape) == (rows, *array.shape)
        same_targets(flat(decoded), self.decode(flat_columns))

    def test_round_trip_is_close(self) -> None:
        values = self.values(500)
        stored = self.encode(values)
        declared = self.codec.columns(self.array, self.complete).values()
        assert sum(column.nbytes for column in stored.values()) == 500 * sum(array.width for array in declared)
        if self.most_kl is not None:
            found = kl(values, self.decode(stored))
            assert found.keys() == {"1", "2", "4"}
            assert all(-1e-9 < value <= self.most_kl for value in found.values()), found

    def test_a_random_estimate_is_right_in_the_mean(self) -> None:
        """Any fixed linear function of the estimate, such as a gradient, has the exact one's value on average."""
        if self.most_kl is not None:
            return
        rows, times = 6, 4000
        values = self.values(rows)
        stored = self.encode(values.repeat_interleave(times, 0), torch.arange(rows * times))
        decoded = self.decode(stored)
        assert isinstance(decoded, SampledLogits)
        exact = torch.softmax(values.double() / decoded.temperature, dim=1)
        found = estimate(decoded).reshape(rows, times, -1)
        directions = torch.randn(exact.shape[1], 25, generator=torch.Generator().manual_seed(8), dtype=torch.float64)
        along = found @ directions
        deviation = (along.mean(1) - exact @ directions).abs()
        assert (deviation <= 5 * along.std(1) / times**0.5 + 1e-6).all()

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
            self.decode({**stored, suffix: stored[suffix][:, :0]})
        with pytest.raises(StoreDamaged, match="its codec declares"):
            self.decode({**stored, suffix: stored[suffix].double()})

    @settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.differing_executors])
    @given(st.integers(0, 9), st.integers(0, 10_000), st.sampled_from([0.0, 1e-3, 1.0, 10.0]))
    def test_finite_logits_decode_to_finite_targets(self, rows: int, seed: int, scale: float) -> None:
        decoded = self.decode(self.encode(logits(rows, self.array.shape[0], seed) * scale))
        assert len(decoded) == rows
        if isinstance(decoded, SparseLogits):
            for temperature in (1.0, 4.0):
                kept, tail = decoded.log_probs(temperature)
                assert torch.allclose(kept.exp().sum(-1) + tail.exp(), torch.ones(rows), atol=1e-4)
        elif isinstance(decoded, SampledLogits):
            assert (decoded.weights >= 0).all()
            assert torch.allclose(decoded.weights.sum(-1), torch.ones(rows), atol=1e-5)
        else:
            dense = decoded.dense() if isinstance(decoded, QuantisedLogits) else decoded
            assert dense.isfinite().all()

    def test_bytes_are_the_format(self) -> None:
        """A change here is a change of the store's format."""
        values = torch.tensor(self.golden_values)
        configuration = self.codec.configure(self.golden_configuration, Array("float32", tuple(values.shape[1:])))
        stored = self.codec.encode(values, configuration, self.golden_tables, torch.arange(len(values)))
        found = {
            suffix: column.contiguous().view(torch.uint8).numpy().tobytes().hex() for suffix, column in stored.items()
        }
        assert found == self.golden_bytes

    @pytest.mark.cuda
    @pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
    def test_device_gives_what_the_host_gives(self) -> None:
        values, keys, tables = self.values(300), self.keys(300), self.tables()
        on_device = {name: table.cuda() for name, table in tables.items()}
        there = self.codec.encode(values.cuda(), self.complete, on_device, keys.cuda())
        assert all(column.is_cuda for column in there.values())
        here = self.codec.decode(there, self.array, self.complete, on_device).to("cpu")
        host = self.decode(self.encode(values, keys))
        if isinstance(here, SampledLogits):  # a draw may fall on the other side of a rounded boundary, rarely
            assert isinstance(host, SampledLogits)
            apart = (estimate(here) - estimate(host)).abs().sum(-1)
            assert (apart < 1e-3).double().mean() > 0.98
            return
        first, second = kl(values, host, (1, 4)), kl(values, here, (1, 4))
        assert second == {key: pytest.approx(value, rel=1e-2, abs=1e-6) for key, value in first.items()}
