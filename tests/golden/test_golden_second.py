"""The second pair of golden stores: quant, sampled and threshold, read by the words of FORMAT.md alone."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path

import make
import numpy as np
import pytest
import torch
from words import bits, number

from kdcache.codecs import CODECS, QuantisedLogits, SampledLogits, Targets
from kdcache.fingerprint import sha256
from kdcache.store import StoreReader, open_store, verify

HERE = Path(__file__).parent / "second"
EXPECTED = json.loads((HERE / "expected.json").read_text())


@pytest.mark.parametrize("name", ["parquet", "hdf5"])
def test_every_byte_is_still_read(name: str) -> None:
    assert verify(HERE / name, deep=True)["strange_files"] == []
    with open_store(HERE / name) as store:
        found = {"digest": store.digest, "plan": store.plan.digest, "alignment": store.plan.alignment}
        assert found == EXPECTED[name]
        for column, digest in EXPECTED["columns"].items():
            values = store.read_column(column)
            assert sha256([values.tobytes()]) == digest
            assert values[:2].tolist() == EXPECTED["first"][column]


def decoded(store: StoreReader, name: str) -> Targets:
    field = store.fields[name]
    columns = {suffix: torch.from_numpy(store.read_column(field.column(suffix))) for suffix in field.columns}
    return CODECS[field.codec].decode(columns, field.array, field.configuration, {})


def ascending(row: Sequence[int], count: int, classes: int) -> list[int]:
    """FORMAT.md section 5, ascending ids."""
    low = min(range(32), key=lambda each: count * each + count + (classes - 1 >> each))
    cut = -(-count * low // 8)
    lows = [number(bits(row[:cut])[j * low : (j + 1) * low]) for j in range(count)]
    marks = [place for place, bit in enumerate(bits(row[cut:])) if bit]
    assert len(marks) == count
    return [(mark - j << low) + low_bits for j, (mark, low_bits) in enumerate(zip(marks, lows, strict=True))]


def estimate(targets: Targets, row: tuple[int, ...]) -> list[float]:
    assert isinstance(targets, SampledLogits)
    found = [0.0] * targets.num_classes
    for index, weight in zip(targets.indices[row].tolist(), targets.weights[row].tolist(), strict=True):
        found[index] += weight
    return found


@pytest.mark.parametrize("name", ["parquet", "hdf5"])
def test_draws(name: str) -> None:
    with open_store(HERE / name) as store:
        targets = decoded(store, "draws")
        for at, row in enumerate(store.read_column("draws").tolist()):
            ids = ascending(row, 9, 10)
            assert estimate(targets, (at,)) == pytest.approx([ids.count(i) / 9 for i in range(10)], abs=1e-7)


def by_the_format(head: list[int], shares: list[float], tail: list[int]) -> list[float]:
    found, left = [0.0] * 10, 1.0
    for index, share in zip(head, shares, strict=True):
        found[index] += share * left
        left *= 1 - share
    for index in tail:
        found[index] += left / len(tail)
    return found


@pytest.mark.parametrize("name", ["parquet", "hdf5"])
def test_marks_and_tokens(name: str) -> None:
    with open_store(HERE / name) as store:
        columns = [store.read_column(f"marks.{suffix}").tolist() for suffix in ("head", "values", "tail")]
        targets = decoded(store, "marks")
        for at, (head, values, tail) in enumerate(zip(*columns, strict=True)):
            expected = by_the_format(ascending(head, 1, 10), values, ascending(tail, 8, 10))
            assert estimate(targets, (at,)) == pytest.approx(expected, abs=1e-6)
        columns = [store.read_column(f"tokens.{suffix}").tolist() for suffix in ("head", "values", "tail")]
        targets = decoded(store, "tokens")
        assert isinstance(targets, SampledLogits)
        assert (targets.shape, targets.temperature) == ((16, 2, 10), 2.0)
        for at, row in enumerate(zip(*columns, strict=True)):
            for position, (head, values, tail) in enumerate(zip(*row, strict=True)):
                shares = [math.sin(math.pi * code / 510) ** 2 for code in values]
                expected = by_the_format(ascending(head, 1, 10), shares, ascending(tail, 9, 10))
                assert estimate(targets, (at, position)) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("name", ["parquet", "hdf5"])
def test_rows_and_map(name: str) -> None:
    with open_store(HERE / name) as store:
        order = store.plan.permutation()
        rows = decoded(store, "rows")
        assert isinstance(rows, QuantisedLogits)
        scale, zero = np.split(store.read_column("rows.range"), 2, axis=-1)
        assert np.array_equal(rows.dense().numpy(), store.read_column("rows") * scale + zero)
        teacher = make.teacher_values(make.LOGITS, 16).numpy()[order]
        assert np.abs(rows.dense().numpy() - teacher).max() <= 16 / 255 / 2 + 1e-5
        values = decoded(store, "map")
        assert isinstance(values, torch.Tensor)
        ranges, codes = store.read_column("map.range").astype(np.float64), store.read_column("map").tolist()
        for at, sample in enumerate(codes):
            for channel, packed in enumerate(sample):
                numbers = [number(bits(packed)[4 * j : 4 * j + 4]) for j in range(9)]
                expected = np.array(numbers) * ranges[at, channel, 0] + ranges[at, channel, 1]
                assert values[at, channel].flatten().tolist() == pytest.approx(expected.tolist(), abs=1e-5)
        teacher = make.teacher_values(make.MAP, 16).numpy()[order]
        assert np.abs(values.numpy() - teacher).max() <= 16 / 15 / 2 + 1e-2
