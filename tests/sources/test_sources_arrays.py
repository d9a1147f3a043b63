""".npy and .npz."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdcache.arrays import Array
from kdcache.config import SourceConfig
from kdcache.errors import SourceError, UsageError
from kdcache.sources import open_source
from kdcache.sources.arrays import open_npy, open_npz

X = np.arange(24, dtype=np.float32).reshape(4, 3, 2)
Y = np.array([1, -1, 0, 2], np.int16)


def test_npy_is_mapped_and_npz_is_the_same_source(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", X)
    np.save(tmp_path / "y.npy", Y)
    np.savez_compressed(tmp_path / "both.npz", inputs=X, y=Y)
    mapped = open_npy(tmp_path / "x.npy", tmp_path / "y.npy", name="toy")
    member = open_npz(tmp_path / "both.npz", "inputs", "y", name="toy")
    assert mapped.arrays == member.arrays == {"input": Array("float32", (3, 2)), "label": Array("int64")}
    assert mapped.classes == member.classes == 3
    for source in (mapped, member):
        rows = source.read(np.array([3, 1]))
        np.testing.assert_array_equal(rows["input"], X[[3, 1]])
        np.testing.assert_array_equal(rows["label"], [2, -1])
        assert type(rows["input"]) is np.ndarray
    assert mapped.fingerprint() == member.fingerprint()


@pytest.mark.parametrize("values", [X.astype(">f4"), np.asfortranarray(X)], ids=["big-endian", "fortran"])
def test_other_layouts_come_out_native(tmp_path: Path, values: np.ndarray) -> None:
    np.save(tmp_path / "x.npy", values)
    np.save(tmp_path / "plain.npy", X)
    source = open_npy(tmp_path / "x.npy", None, name="toy")
    found = source.read(source.ids())["input"]
    assert found.dtype == np.dtype("<f4")
    assert found.flags.c_contiguous
    np.testing.assert_array_equal(found, X)
    assert source.fingerprint() == open_npy(tmp_path / "plain.npy", None, name="toy").fingerprint()


def test_npz_without_labels_is_unlabelled_and_without_inputs_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", x=X)
    source = open_npz(tmp_path / "x.npz", "x", "y", name="toy")
    assert "label" not in source.arrays
    assert source.classes is None
    with pytest.raises(SourceError, match=r"has no member 'data', it has \['x'\]"):
        open_npz(tmp_path / "x.npz", "data", "y", name="toy")


def test_an_id_that_is_not_there(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", X)
    with pytest.raises(UsageError, match="ids 4 to 4; it has 0 to 3"):
        open_npy(tmp_path / "x.npy", None, name="toy").read(np.array([4]))


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (np.array([{}, {}], object), "holds Python objects"),
        (np.zeros((2, 2), bool), "its values are bool, which no store keeps"),
        (np.zeros((2, 2), np.complex64), "its values are complex64"),
        (np.zeros((2, 2), np.uint64), "its values are uint64"),
        (np.array(["a", "b"]), "which no store keeps"),
        (np.zeros((0, 2), np.uint8), "holds no samples"),
        (np.zeros((), np.uint8), "holds no samples"),
    ],
)
def test_inputs_that_no_store_keeps(tmp_path: Path, values: np.ndarray, said: str) -> None:
    np.save(tmp_path / "x.npy", values, allow_pickle=True)
    np.savez(tmp_path / "x.npz", x=values)
    with pytest.raises(SourceError, match=said):
        open_npy(tmp_path / "x.npy", None, name="toy")
    with pytest.raises(SourceError, match=said):
        open_npz(tmp_path / "x.npz", "x", "y", name="toy")


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        (np.zeros(4), "labels must be whole numbers, one per sample; found float64"),
        (np.zeros((4, 1), int), r"found int64 of shape \[4, 1\]"),
        (np.array([0, -2, 0, 0]), "row 1 has label -2, allowed are 0 or more"),
        (np.array([0, 0, 0, 2**64 - 1], np.uint64), "row 3 has label 18446744073709551615"),
        (np.zeros(3, int), "holds 4 samples and .*y.npy holds 3 labels"),
    ],
)
def test_bad_labels(tmp_path: Path, labels: np.ndarray, said: str) -> None:
    np.save(tmp_path / "x.npy", X)
    np.save(tmp_path / "y.npy", labels)
    with pytest.raises(SourceError, match=said):
        open_npy(tmp_path / "x.npy", tmp_path / "y.npy", name="toy")


def test_a_header_that_declares_too_much_is_refused_before_allocation(tmp_path: Path) -> None:
    content = io.BytesIO()
    np.lib.format.write_array_header_1_0(content, {"descr": "|u1", "fortran_order": False, "shape": (1 << 40, 64)})
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
        archive.writestr("x.npy", content.getvalue() + b"\0" * 100)
    (tmp_path / "x.npy").write_bytes(content.getvalue() + b"\0" * 100)
    with pytest.raises(SourceError, match="but 100 follow"):
        open_npz(tmp_path / "x.npz", "x", "y", name="toy")
    with pytest.raises(SourceError, match="but 100 follow"):
        open_npy(tmp_path / "x.npy", None, name="toy")


def test_missing_files(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="no such file"):
        open_npy(tmp_path / "x.npy", None, name="toy")
    with pytest.raises(SourceError, match="No such file"):
        open_npz(tmp_path / "x.npz", "x", "y", name="toy")


@settings(max_examples=80, deadline=None)
@given(st.data())
def test_mutated_files_are_read_or_refused(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    suffix = data.draw(st.sampled_from([".npy", ".npz"]))
    path = tmp_path_factory.getbasetemp() / f"mutated{suffix}"
    if suffix == ".npy":
        np.save(path, X)
    else:
        data.draw(st.sampled_from([np.savez, np.savez_compressed]))(path, x=X, y=Y)
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(0, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content[: data.draw(st.one_of(st.just(len(content)), st.integers(0, len(content))))])
    try:
        source = open_npy(path, None, name="toy") if suffix == ".npy" else open_npz(path, "x", "y", name="toy")
    except SourceError:
        return
    assert len(source.read(source.ids())["input"]) == len(source)


def test_classes_may_be_said(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.zeros((4, 3), np.float32))
    np.save(tmp_path / "y.npy", np.array([0, 1, 2, 1]))
    unlabelled = open_source(SourceConfig(kind="arrays", images=tmp_path / "x.npy", classes=7))
    assert (unlabelled.classes, set(unlabelled.arrays)) == (7, {"input"})
    whole = SourceConfig(kind="arrays", images=tmp_path / "x.npy", labels=tmp_path / "y.npy", classes=9)
    assert open_source(whole).classes == 9
    with pytest.raises(SourceError, match=r"row 2 has label 2, allowed are 0 to 1"):
        open_source(whole.model_copy(update={"classes": 2}))
