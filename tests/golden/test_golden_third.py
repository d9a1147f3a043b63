"""The third golden store: topk with packed indices, masses and anchors, lowrank with a curve, by FORMAT.md alone."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import make
import numpy as np
import pytest
import torch
from words import bits, number

from kdcache.codecs import CODECS, SparseLogits, Targets
from kdcache.fingerprint import sha256
from kdcache.store import StoreReader, open_store, verify

HERE = Path(__file__).parent / "third"
EXPECTED = json.loads((HERE / "expected.json").read_text())
CLASSES = 10


def decoded(store: StoreReader, name: str) -> Targets:
    field = store.fields[name]
    columns = {suffix: torch.from_numpy(store.read_column(field.column(suffix))) for suffix in field.columns}
    tables = {key: torch.from_numpy(table) for key, table in store.table(name).items()}
    return CODECS[field.codec].decode(columns, field.array, field.configuration, tables)


def sparse_rows(store: StoreReader, name: str, *suffixes: str) -> list[tuple[Any, ...]]:
    """The columns of a topk field, a tuple for each vector."""
    columns = [store.read_column(f"{name}.{suffix}") for suffix in suffixes]
    return list(zip(*(column.reshape(-1, column.shape[-1]).tolist() for column in columns), strict=True))


def classes_of(row: list[int], k: int) -> list[int]:
    return [number(bits(row)[4 * j : 4 * j + 4]) for j in range(k)]


def tail_at(b: float, temperatures: list[float], tail: list[float], others: int) -> float:
    """FORMAT.md section 5, K(b) of topk."""
    known = sorted([(0.0, math.log(others)), *((1 / t, value) for t, value in zip(temperatures, tail, strict=True))])
    for at, value in known:
        if at == b:
            return value
    exact = np.polyfit([at for at, _ in known], [value for _, value in known], len(known) - 1)

    def line(one: tuple[float, float], two: tuple[float, float]) -> float:
        return one[1] + (b - one[0]) * (two[1] - one[1]) / (two[0] - one[0])

    below, above = [p for p in known if p[0] < b], [p for p in known if p[0] > b]
    least = [b * known[-1][1]]
    least += [line(*below[-2:])] if len(below) > 1 else []
    least += [line(*above[:2])] if len(above) > 1 else []
    return min(max(float(np.polyval(exact, b)), *least), line(below[-1], above[0]))


def check_logs(targets: Targets, at: int, ids: list[int], values: list[float], tail: list[float]) -> None:
    """The decoded distribution of vector `at` at stored temperatures, and between and beyond them."""
    assert isinstance(targets, SparseLogits)
    flat, temperatures = targets.flatten(), list(targets.temperatures or ())
    assert flat.indices[at, : len(ids)].tolist() == ids
    assert set(flat.indices[at, len(ids) :].tolist()) <= {ids[0]}
    for temperature in (1.0, 1.5, 2.0, 3.0, 10.0, 16.0, 50.0):
        weights = [value / temperature for value in values]
        rest = tail_at(1 / temperature, temperatures, tail, CLASSES - len(ids))
        total = float(np.logaddexp.reduce([*weights, rest]))
        kept, other = (part[at].tolist() for part in flat.log_probs(temperature))
        assert kept[: len(ids)] == pytest.approx([weight - total for weight in weights], abs=1e-4)
        assert kept[len(ids) :] == [-math.inf] * (len(kept) - len(ids))
        assert other == pytest.approx(rest - total, abs=1e-4)


def test_every_byte_is_still_read() -> None:
    assert verify(HERE / "parquet", deep=True)["strange_files"] == []
    with open_store(HERE / "parquet") as store:
        found = {"digest": store.digest, "plan": store.plan.digest, "alignment": store.plan.alignment}
        assert found == EXPECTED["parquet"]
        for column, digest in EXPECTED["columns"].items():
            values = store.read_column(column)
            assert sha256([values.tobytes()]) == digest
            assert values[:2].tolist() == EXPECTED["first"][column]


def test_codes_with_a_mass() -> None:
    with open_store(HERE / "parquet") as store:
        targets, lengths = decoded(store, "codes"), set()
        rows = sparse_rows(store, "codes", "indices", "scale", "tail", "values")
        for at, (indices, (first, largest), tail, codes) in enumerate(rows):
            ids = classes_of(indices, 5)
            kept = next((j for j in range(1, 5) if ids[j] == ids[0]), 5)
            assert codes[0] == 0
            assert codes[kept:] == [0] * (5 - kept)
            values = [first - largest * sum((c / 255) ** 2 for c in codes[1 : j + 1]) for j in range(kept)]
            check_logs(targets, at, ids[:kept], values, tail)
            lengths.add(kept)
        assert len(lengths) > 1


def test_tokens_with_an_anchor() -> None:
    with open_store(HERE / "parquet") as store:
        targets = decoded(store, "tokens")
        assert isinstance(targets, SparseLogits)
        assert (targets.shape, targets.temperatures) == ((16, 2, CLASSES), (1.0, 2.0, 4.0, 16.0))
        for at, (indices, tail, values) in enumerate(sparse_rows(store, "tokens", "indices", "tail", "values")):
            check_logs(targets, at, classes_of(indices, 3), values, tail)
        teacher = make.teacher_values(make.POSITIONS, 16).double()[store.plan.permutation()]
        log_p = torch.log_softmax(teacher, -1).gather(-1, targets.indices.long())
        assert float((targets.log_p - log_p).abs().max()) < 2**-7


def test_levels_on_a_curve() -> None:
    with open_store(HERE / "parquet") as store:
        logits, tables = decoded(store, "curved"), store.table("curved")
        assert isinstance(logits, torch.Tensor)
        wide, curves = tables["bits"].tolist(), tables["curve"].tolist()
        assert min(curves) > 0
        for at, row in enumerate(store.read_column("curved").tolist()):
            y, start = [], 0
            for width, curve, step in zip(wide, curves, tables["step"].tolist(), strict=True):
                m = number(bits(row)[start : start + width]) - 2 ** (width - 1) + 0.5
                y.append(math.sinh(curve * m) / curve * step)
                start += width
            expected = np.array(y) @ tables["basis"].astype(np.float64) + tables["mean"]
            assert logits[at].tolist() == pytest.approx(expected.tolist(), abs=1e-4)


def test_all_golden_stores_together_are_small() -> None:
    folders = [Path(__file__).parent / folder / name for folder, (*_, names) in make.SETS.items() for name in names]
    folders.append(Path(__file__).parent / "fourth" / "parquet")
    assert sum(path.stat().st_size for folder in folders for path in folder.rglob("*") if path.is_file()) <= 90_000
