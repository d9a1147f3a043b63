"""Plans, records and manifests from a stranger."""

from __future__ import annotations

import copy
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hostile_store import check, columns, forge, header, honest, plan_of, refusal
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kdcache.errors import KdcacheError, StoreDamaged, StoreMismatch, StoreUnfinished, TrustError
from kdcache.fingerprint import canonical
from kdcache.store import describe, open_store, parquet, plain_field, verify
from kdcache.store.guard import parse_canonical, safe
from kdcache.store.plan_file import plan_from_json

BAD_STRINGS = [
    "",
    "../x",
    "/etc/passwd",
    "a\0b",
    "a\nb",
    "\x1b[31m",
    "\u202eevil",
    "a/b",
    "~",
    "\\\\host",
    "x" * 10_000,
    ".",
    "ｉd",
]
BAD_VALUES: list[Any] = [
    None, True, False, 0, -1, 1, 7, 2**31, 2**31 + 1, 2**32, 2**63, 2**64, 10**3000, 0.5, -0.0, 1e300,
    [], [1], [[]], {}, {"a": 1}, *BAD_STRINGS,
]  # fmt: skip


def nodes(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield from nodes(inner, (*path, key))


def changed(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    if not path:
        return new
    value = copy.copy(value)
    value[path[0]] = changed(value[path[0]], path[1:], new)
    return value


def plan_with_tables() -> dict[str, Any]:
    value: dict[str, Any] = json.loads(plan_of().bytes)
    return {**value, "tables": {"logits": "cd" * 32}}


PLAN = plan_with_tables()
PLACES = list(nodes(PLAN))


def check_plan(value: Any) -> None:
    """Refused with a type, or a plan that can be used."""
    try:
        plan = plan_from_json(value, "here")
    except KdcacheError as error:
        check(error)
    else:
        assert plan.digest
        assert plan.block_starts[-1] == plan.rows
        assert sum(array.width for array in plan.columns.values()) > 0


@pytest.mark.parametrize("path", PLACES, ids=lambda path: ".".join(map(str, path)) or "whole")
def test_any_node_of_a_plan_may_be_anything(path: tuple[Any, ...]) -> None:
    for new in BAD_VALUES:
        check_plan(changed(PLAN, path, new))


@settings(max_examples=150, deadline=None)
@given(
    paths=st.lists(st.sampled_from(PLACES[1:]), min_size=2, max_size=4),
    values=st.lists(
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
            lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3),
            max_leaves=5,
        ),
        min_size=4,
        max_size=4,
    ),
)
def test_any_nodes_of_a_plan_together(paths: list[tuple[Any, ...]], values: list[Any]) -> None:
    value = PLAN
    for path, new in zip(paths, values, strict=False):
        try:
            value = changed(value, path, new)
        except (TypeError, KeyError, IndexError):
            continue
    check_plan(value)


KEYS = [path for path in PLACES if path and isinstance(path[-1], str)]


@pytest.mark.parametrize("path", KEYS, ids=lambda path: ".".join(map(str, path)))
def test_keys_missing_and_strange(path: tuple[Any, ...]) -> None:
    parent = PLAN
    for key in path[:-1]:
        parent = parent[key]
    check_plan(changed(PLAN, path[:-1], {k: v for k, v in parent.items() if k != path[-1]}))
    check_plan(changed(PLAN, path[:-1], {**parent, "\x1b[2J\u202e": 1}))


@pytest.mark.parametrize("name", ["manifest.json", "units/000000.json"])
def test_any_node_of_a_manifest_or_record_may_be_anything(tmp_path: Path, name: str) -> None:
    forge(tmp_path / "s", plan_of(), honest(plan_of()))
    file = tmp_path / "s" / name
    value = json.loads(file.read_bytes())
    for path in nodes(value):
        if "facts" in path:
            continue
        for new in BAD_VALUES:
            try:
                file.write_bytes(canonical(changed(value, path, new)))
                verify(tmp_path / "s")
            except KdcacheError as error:
                check(error)
            else:
                assert changed(value, path, new) == value


@pytest.mark.parametrize(
    "data",
    [
        b"", b"\n", b"{", b"null\n", b"[]\n", b'"x"\n', b"\xff\xfe{\0}\0", b"\xef\xbb\xbf{}\n", b"{} {}\n", b"\0" * 100,
        b'{"a":1,"a":1}\n', b'{"a":NaN}\n', b'{"a":Infinity}\n', b'{"a":-Infinity}\n', b'{"a":1e999}\n',
        b'{"a":"\\ud800"}\n',
        b'{"b":1,"a":2}\n', b'{"a": 1}\n', b'{"a":1.00}\n', b'{"a":1E5}\n', b'{"a":"\\u0041"}\n',
        b'{"a":01}\n', b'{"a":1}',
        b'{"a":' + b"9" * 5000 + b"}\n", b'{"a":"\xc3("}\n',
        b"[" * 17 + b"]" * 17 + b"\n", b"[" * 1_000_000, b'{"a":' * 100_000, b'"' + b'\\"' * 1_000_000,
        b'"\\\n' * 500_000,
        b'["\\"[[[[[[[[[[[[[[[[[[[[[[[[[",' + b"[" * 16 + b"]" * 17 + b"\n",
    ],
    ids=range(31),
)  # fmt: skip
def test_bytes_that_are_not_canonical_json(tmp_path: Path, data: bytes) -> None:
    forge(tmp_path / "s", plan_of(), honest(plan_of()))
    for name in ("plan.json", "manifest.json", "units/000000.json"):
        file = tmp_path / "s" / name
        right = file.read_bytes()
        file.write_bytes(data)
        start = time.monotonic()
        with pytest.raises(KdcacheError) as caught:
            verify(tmp_path / "s")
        check(caught.value)
        assert time.monotonic() - start < 20
        file.write_bytes(right)
    assert refusal(tmp_path / "s") is None


def test_files_too_large_to_be_read(tmp_path: Path) -> None:
    forge(tmp_path / "s", plan_of(), honest(plan_of()))
    for name in ("plan.json", "manifest.json", "units/000000.json"):
        file = tmp_path / "s" / name
        right = file.read_bytes()
        os.truncate(file, 1 << 40)
        with pytest.raises(TrustError, match=r"1099511627776 bytes, at most"):
            verify(tmp_path / "s")
        file.write_bytes(right)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.binary(max_size=60) | st.text('{}[]":,\\ 01e-.truefalsn\n', max_size=40).map(str.encode))
def test_any_bytes_as_json(data: bytes) -> None:
    try:
        value = parse_canonical(data, "here")
    except (StoreDamaged, TrustError) as error:
        check(error)
    else:
        assert canonical(value) == data


@pytest.mark.parametrize("name", BAD_STRINGS)
def test_names_of_columns(name: str) -> None:
    value = copy.deepcopy(PLAN)
    value["fields"][1]["name"], value["tables"] = name, {}
    with pytest.raises((TrustError, StoreDamaged), match=r"^here: ") as caught:
        plan_from_json(value, "here")
    assert str(caught.value).isprintable()
    value = copy.deepcopy(PLAN)
    value["fields"][1]["columns"][f"x{name}/"] = value["fields"][1]["columns"][""]
    with pytest.raises(TrustError):
        plan_from_json(value, "here")


def test_a_newer_version_and_an_unfinished_store(tmp_path: Path) -> None:
    forge(tmp_path / "s", plan_of(), honest(plan_of()))
    file = tmp_path / "s" / "manifest.json"
    file.write_bytes(canonical({**json.loads(file.read_bytes()), "version": 2}))
    with pytest.raises(StoreMismatch, match=r"version 2, this kdcache reads 1"):
        open_store(tmp_path / "s")
    file.unlink()
    with pytest.raises(StoreUnfinished):
        open_store(tmp_path / "s")
    assert describe(tmp_path / "s")["complete"] is False


def test_headers_of_shards(tmp_path: Path) -> None:
    plan = plan_of()
    right = json.loads(header(plan))
    for path in nodes(right):
        for new in (None, True, 0, 7, "x", "\x1b[31m", [], {}, ["ab" * 16] * 1, {"a": 1}, 1.5):
            if (value := changed(right, path, new)) == right:
                continue
            data = bytes(parquet.encode(columns(plan), plan.columns, plan.block_rows, "none", canonical(value)))
            forge(tmp_path / "s", plan, data)
            assert refusal(tmp_path / "s") is not None, (path, new)


def test_strings_on_their_way_to_a_terminal() -> None:
    text = safe("a\x1b[31m\r\n\t\0\x7f\x9b\u202e\u2066\u200b\ufeff\ud800é日")
    assert text.isprintable()
    assert text.startswith("a")
    assert text.endswith("é日")
    assert len(safe("x" * 10_000)) == 201


def test_widths_are_products_of_integers_without_end(tmp_path: Path) -> None:
    for shape in ([2**31] * 8, [2**16] * 4, [1] * 9, [0], [-1], [2**62, 4], [True]):
        value = copy.deepcopy(PLAN)
        value["fields"][1]["columns"][""]["shape"] = shape
        with pytest.raises((StoreDamaged, TrustError)):
            plan_from_json(value, "here")
    assert plain_field("x", plan_of().columns["logits"]).width == 16
