"""Canonical JSON and digests."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdcache.errors import SourceError
from kdcache.fingerprint import canonical, digest_of, file_digest, sha256

values: st.SearchStrategy[Any] = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
    max_leaves=12,
)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ({"b": 1, "a": [True, None, "x"], "Z": {}, "é": -0.0}, '{"Z":{},"a":[true,null,"x"],"b":1,"é":-0.0}'),
        (
            [1.0, 0.1, 1e-05, 0.0001, 1e16, 123456789012345.0, 1e300],
            "[1.0,0.1,1e-05,0.0001,1e+16,123456789012345.0,1e+300]",
        ),
        ('"\\/\b\f\n\r\t\x00\x1f\x7f\u2028\U0001f600', '"\\"\\\\/\\b\\f\\n\\r\\t\\u0000\\u001f\x7f\u2028\U0001f600"'),
        ({"\uffff": 1, "\U00010000": 2}, '{"\uffff":1,"\U00010000":2}'),
    ],
)
def test_exact_bytes(value: object, expected: str) -> None:
    assert canonical(value) == expected.encode() + b"\n"


@settings(max_examples=100, deadline=None)
@given(values)
def test_reading_and_writing_again_changes_nothing(value: object) -> None:
    data = canonical(value)
    assert canonical(json.loads(data)) == data
    assert digest_of(value) == hashlib.sha256(data).hexdigest()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), {"a": [-float("inf")]}, "\ud800"])
def test_what_has_no_canonical_form(value: object) -> None:
    with pytest.raises(ValueError):
        canonical(value)


def test_digests(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"abc" * 100_000)
    assert file_digest(tmp_path / "f") == sha256([b"abc" * 50_000, memoryview(b"abc" * 50_000)])
    assert sha256([b"abc"]) == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    with pytest.raises(SourceError, match=r"nothing: cannot be read .No such file"):
        file_digest(tmp_path / "nothing")
