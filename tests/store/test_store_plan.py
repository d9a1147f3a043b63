"""The plan: its JSON, its order, its cut, and what makes two plans the same or aligned."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from store_example import example_plan

from kdcache.arrays import Array
from kdcache.errors import KdcacheError, StoreDamaged, StoreMismatch, TrustError
from kdcache.fingerprint import canonical
from kdcache.store import plain_field, read_plan
from kdcache.store.plan_file import plan_from_bytes

PLACES = Path("a"), Path("b")


def test_json_round_trip(tmp_path: Path) -> None:
    plan = example_plan(
        input_statistics={"mean": [0.5], "std": [1e-5]},
        teacher={"model": "zoo:convnet", "args": {"width": [1, 2]}},
        tables={"logits": "cd" * 32},
    )
    (tmp_path / "plan.json").write_bytes(plan.bytes)
    assert read_plan(tmp_path) == plan
    assert plan_from_bytes(plan.bytes, "here").digest == plan.digest == hashlib.sha256(plan.bytes).hexdigest()
    assert read_plan(tmp_path / "nowhere") is None


def test_the_order_never_changes() -> None:
    expected = [1, 5, 7, 4, 9, 3, 8, 2, 0, 6]
    assert example_plan(rows=10).permutation().tolist() == expected
    assert example_plan(rows=10, order={"kind": "source", "seed": 0}).permutation().tolist() == list(range(10))
    long = example_plan(rows=100_000, order={"kind": "shuffled", "seed": 7}).permutation()
    assert hashlib.sha256(long.astype("<i8").tobytes()).hexdigest() == (
        "fc34d38fa40b059e50b7a164b572409436894ca380bd769a3ad8d49fc851b9e8"
    )


@settings(max_examples=50, deadline=None)
@given(rows=st.integers(1, 3000), block_rows=st.integers(1, 70), per_unit=st.integers(1, 9), seed=st.integers(-9, 9))
def test_order_and_cut(rows: int, block_rows: int, per_unit: int, seed: int) -> None:
    unit_rows = block_rows * per_unit
    plan = example_plan(rows=rows, unit_rows=unit_rows, block_rows=block_rows, order={"kind": "shuffled", "seed": seed})
    assert np.array_equal(np.sort(plan.permutation()), np.arange(rows))
    starts = plan.block_starts
    expected = [s for u in range(plan.units) for s in range(*plan.unit_range(u), block_rows)]
    assert starts.tolist() == [*expected, rows]
    assert [plan.unit_blocks(u) for u in range(plan.units)] == np.bincount(starts[:-1] // unit_rows).tolist()
    assert (np.diff(starts) > 0).all()
    assert plan.unit_range(plan.units - 1)[1] == rows
    assert plan_from_bytes(plan.bytes, "here") == plan


def test_a_huge_last_unit_costs_no_memory() -> None:
    plan = example_plan(rows=5, unit_rows=2**31, block_rows=1)
    assert plan_from_bytes(plan.bytes, "here").block_starts.tolist() == [0, 1, 2, 3, 4, 5]


def test_alignment_is_of_source_order_and_cut_alone() -> None:
    plan = example_plan()
    same = [
        example_plan("hdf5", "deflate"),
        example_plan(extra=[plain_field("features", Array("float16", (7,)))]),
        example_plan(batch_rows=1, teacher={"model": "x"}, input_statistics={"mean": [0.0], "std": [1.0]}),
        example_plan(source={**plan.source, "name": "another name", "classes": None}),
    ]
    other = [
        example_plan(rows=51),
        example_plan(unit_rows=16),
        example_plan(block_rows=4),
        example_plan(order={"kind": "shuffled", "seed": 1}),
        example_plan(order={"kind": "source", "seed": 0}),
        example_plan(source={**plan.source, "fingerprint": "cd" * 32}),
    ]
    for store in same:
        assert store.digest != plan.digest
        plan.check_aligned(store, *PLACES)
    for store in other:
        with pytest.raises(StoreMismatch, match=r"b: is not aligned with a: .*--like a"):
            plan.check_aligned(store, *PLACES)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"rows": 51}, "rows is 51 there and 50"),
        ({"order": {"kind": "shuffled", "seed": 3}}, "order.seed is 3 there and 0"),
        ({"container": {"format": "hdf5", "compression": "none"}}, "container.format is hdf5 there and parquet"),
        ({"teacher": {"model": "x"}}, "teacher is {'model': 'x'} there and None"),
        ({"fields": (plain_field("id", Array("int64")),)}, "fields.input is None there"),
        (
            {"fields": (*example_plan().fields[:-1], plain_field("logits", Array("float32", (9,))))},
            r"fields.logits.array.shape is \[9\] there and \[10\]",
        ),
    ],
)
def test_the_first_difference_is_named(change: dict[str, object], named: str) -> None:
    theirs = dataclasses.replace(example_plan(), **change)
    with pytest.raises(StoreMismatch, match=f"store: holds a store with another plan: {named}.*choose another --out"):
        example_plan().check_same(theirs, Path("store"))
    example_plan().check_same(dataclasses.replace(example_plan(), tables={"logits": "ab" * 32}), Path("store"))


def test_a_newer_version_says_so() -> None:
    value = json.loads(example_plan().bytes)
    with pytest.raises(StoreMismatch, match="format version 2, this kdcache reads 1; install"):
        plan_from_bytes(canonical({**value, "version": 2, "new": 1}), "here")
    with pytest.raises(StoreDamaged, match="unknown key 'new'"):
        plan_from_bytes(canonical({**value, "new": 1}), "here")


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"rows": 2**40, "unit_rows": 24}, TrustError),
        ({"rows": 2**31, "unit_rows": 2**31, "block_rows": 1}, TrustError),
        ({"rows": 2**20, "unit_rows": 2**20, "block_rows": 2**20, "batch_rows": 1}, None),
        ({"rows": 2**27, "unit_rows": 2**30, "block_rows": 2**30}, None),
        ({"rows": 2**27 + 1, "unit_rows": 2**30, "block_rows": 2**30}, TrustError),
        ({"unit_rows": 23}, StoreDamaged),
        ({"block_rows": 0}, StoreDamaged),
        ({"batch_rows": 25}, StoreDamaged),
        ({"rows": 0}, StoreDamaged),
        ({"container": {"format": "hdf5", "compression": "zstd"}}, StoreDamaged),
        ({"container": {"format": "arrow", "compression": "none"}}, StoreDamaged),
        ({"input_statistics": {"mean": [], "std": []}}, StoreDamaged),
        ({"input_statistics": {"mean": [0.0], "std": [0.0]}}, StoreDamaged),
        ({"input_statistics": {"mean": [0], "std": [1]}}, StoreDamaged),
        ({"tables": {"nothing": "ab" * 32}}, StoreDamaged),
        ({"tables": {"logits": "AB" * 32}}, StoreDamaged),
        ({"order": {"kind": "shuffled", "seed": 2**63}}, StoreDamaged),
        ({"order": {"kind": "sorted", "seed": 0}}, StoreDamaged),
    ],
)
def test_bounds(change: dict[str, object], error: type[KdcacheError] | None) -> None:
    fields = (plain_field("id", Array("int64")), plain_field("logits", Array("float16", (2,))))
    data = dataclasses.replace(example_plan(fields=fields), **change).bytes
    if error is None:
        plan_from_bytes(data, "here")
    else:
        with pytest.raises(error, match=r"^here: "):
            plan_from_bytes(data, "here")


TOKENIZER = {"vocabulary": "ab" * 32, "size": 300, "special_tokens": {"</s>": 299}, "chat_template": None}


@pytest.mark.parametrize(
    ("change", "right"),
    [
        ({}, True),
        ({"vocabulary": None, "chat_template": "cd" * 32, "special_tokens": {}}, True),
        ({"vocabulary": "AB" * 32}, False),
        ({"chat_template": "{{ messages }}"}, False),
        ({"size": 0}, False),
        ({"size": "300"}, False),
        ({"special_tokens": {"</s>": 300}}, False),
        ({"special_tokens": {"</s>": "0"}}, False),
        ({"special_tokens": ["</s>"]}, False),
        ({"merges": []}, False),
    ],
)
def test_a_tokenizer_of_the_source(change: dict[str, object], right: bool) -> None:
    data = example_plan(source={**example_plan().source, "tokenizer": {**TOKENIZER, **change}}).bytes
    if right:
        assert plan_from_bytes(data, "here").source["tokenizer"] == {**TOKENIZER, **change}
    else:
        with pytest.raises(StoreDamaged, match=r"^here: source.tokenizer"):
            plan_from_bytes(data, "here")
