"""What a codec is told, its columns, tables and facts, from a stranger: refused with a type, or finite targets."""

from __future__ import annotations

import dataclasses
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command import forked
from hostile_codecs import CLASSES, HONEST, honest, read, store, temperature_of
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kdcache.errors import KdcacheError, StoreDamaged

CODED = [name for name in HONEST if name != "dense"]  # dense floats are what they are, NaN included
BAD: list[Any] = [
    None, True, -1, 8.0, 2**62, 10**400, -0.5, 1e300, "", "uint16", "\x1b[31m\u202e", "x" * 10_000, [], [[1]], {"a": 1},
    [1.0, 1e300], [3.0, 3.0000000000000004], [2, 10**400], [True, 2], [1.0, None],
]  # fmt: skip
EVIL = "\x1b[31m\u202e\n"


@pytest.mark.parametrize("name", HONEST)
def test_what_kdcache_writes_is_read(name: str, tmp_path: Path) -> None:
    field, columns, tables = honest(name)
    assert read(store(tmp_path, field, columns, tables), temperature_of(field)) is None


@pytest.mark.parametrize("name", HONEST)
def test_configurations(name: str, tmp_path: Path) -> None:
    field, columns, tables = honest(name)
    for key in field.configuration:
        for number, bad in enumerate(BAD):
            forged = dataclasses.replace(field, configuration={**field.configuration, key: bad})
            path = store(tmp_path / f"{key}{number}", forged, columns, tables)
            harmless = key == "seed" and bad == 2**62
            assert (read(path, temperature_of(field)) is None) == harmless, (key, bad)


@pytest.mark.parametrize("name", CODED)
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_bytes_of_columns(name: str, data: st.DataObject) -> None:
    """All 0x00, all 0xFF or anything: `read` holds loss and gradient to be finite where nothing is refused."""
    shape = (CLASSES,) if name == "lowrank" else data.draw(st.sampled_from([(CLASSES,), (2, CLASSES)]))
    field, columns, tables = honest(name, shape)
    columns = dict(columns)
    for suffix in data.draw(st.sets(st.sampled_from(sorted(columns)), min_size=1)):
        column = columns[suffix]
        size = column.nbytes
        same = st.sampled_from([0, 127, 128, 255]).map(lambda byte: bytes([byte]) * size)  # noqa: B023
        drawn = data.draw(same | st.binary(min_size=size, max_size=size))
        columns[suffix] = np.frombuffer(drawn, column.dtype).reshape(column.shape)
    with tempfile.TemporaryDirectory() as folder:
        read(store(Path(folder) / "s", field, columns, tables), temperature_of(field))


@pytest.mark.parametrize("name", ["basis", "mean", "step", "bits", "curve"])
def test_tables_of_lowrank(name: str, tmp_path: Path) -> None:
    field, columns, tables = honest("lowrank")
    table = tables[name]
    forged = [table[:-1], table[:0], table[None], np.zeros((), table.dtype), table.astype(np.float64), table > 0]
    forged += [np.zeros((0, 1 << 40), table.dtype), table * 0 + 255]
    if table.dtype.kind == "f":
        forged += [np.full_like(table, value) for value in (np.nan, np.inf, 3e38)]
    for number, values in enumerate(forged):
        path = store(tmp_path / str(number), field, columns, {**tables, name: values})
        error = read(path)
        harmless = name in ("mean", "step", "basis") and values.dtype == table.dtype and values.shape == table.shape
        harmless = harmless and bool((values < (np.inf if name == "mean" else 256)).all())
        assert isinstance(error, StoreDamaged) or harmless, (number, error)
    others = {key: values for key, values in tables.items() if key != name}
    if name != "curve":  # the first stores had none
        assert isinstance(read(store(tmp_path / "missing", field, columns, others)), StoreDamaged)
    strange = store(tmp_path / "strange", field, columns, {**others, EVIL * 500: table})
    assert isinstance(read(strange), StoreDamaged)


FACTS: list[Any] = [
    None, -1, 10**300, EVIL, [[1]], {EVIL: {"kl": {EVIL: 1e308}}}, {"logits": 1}, {"logits": {"kl": {"1": []}}},
    {"logits": {"log_z_error": {"1": 10**400}}}, {"logits": {"log_z_error": {"nan": 0.0, EVIL: 0.0}}},
    {"logits": {"log_z_error": [1]}}, {"logits": {"mean": 1e308, "sd": 1e308, "rows": True}},
]  # fmt: skip


@pytest.mark.parametrize("key", ["fidelity", "drift", "error"])
def test_facts(key: str, tmp_path: Path) -> None:
    field, columns, tables = honest("topk with an anchor")
    for number, facts in enumerate(FACTS):
        read(store(tmp_path / str(number), field, columns, tables, {key: facts}))


@pytest.mark.parametrize("codec", ["sampled", "threshold"])
@pytest.mark.parametrize("temperature", ["x", [], None, True, 2])
def test_a_temperature_that_is_none_is_refused_while_composing(codec: str, temperature: Any, tmp_path: Path) -> None:
    field, columns, tables = honest(codec)
    forged = dataclasses.replace(field, configuration={**field.configuration, "temperature": temperature})
    assert isinstance(read(store(tmp_path, forged, columns, tables)), StoreDamaged)


@pytest.mark.parametrize(
    "change",
    [
        {"teacher": {"args": {}}},
        {"teacher": {"model": [EVIL]}},
        {"budget": {"logits": {"asked": {EVIL: [EVIL]}, "why": EVIL * 500, "measured": {EVIL: 10**300}}}},
    ],
)  # fmt: skip
def test_info_of_what_a_plan_may_say(change: dict[str, Any], tmp_path: Path) -> None:
    field, columns, tables = honest("topk of mass")
    facts = {"fidelity": FACTS[5], "drift": EVIL, EVIL: EVIL}
    path = store(tmp_path / "s", field, columns, tables, facts, change)
    for words in (("info", path), ("info", path, "--json"), ("verify", path, "--deep")):
        done = forked(tmp_path / "said", *words)
        assert done.code == 0, done.err
        assert done.out.replace("\n", "").isprintable()


@pytest.mark.parametrize("reduction", [{}, [], "pool", None, True])
def test_reductions_of_a_plan(reduction: Any, tmp_path: Path) -> None:
    field, columns, tables = honest("dense")
    whole = store(tmp_path / "s", field, columns, tables)
    assert read(whole) is None
    forged = {**field.to_json(), "reduction": reduction}
    with pytest.raises(KdcacheError, match="reduction"):
        store(tmp_path / "t", field, columns, tables, change={"fields": [forged]})
