"""CIFAR records of both widths."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdcache.arrays import Array
from kdcache.errors import SourceError, UsageError
from kdcache.sources.cifar import open_cifar


def records(count: int, limits: tuple[int, ...], seed: int = 0) -> np.ndarray:
    generator = np.random.default_rng(seed)
    labels = np.stack([generator.integers(0, limit, count) for limit in limits], axis=1)
    return np.concatenate([labels, generator.integers(0, 256, (count, 3072))], axis=1).astype(np.uint8)


def write(path: Path, values: np.ndarray, packed: bool = False) -> Path:
    path.write_bytes(gzip.compress(values.tobytes(), 1) if packed else values.tobytes())
    return path


def test_several_files_one_after_the_other(tmp_path: Path) -> None:
    first, second = records(3, (10,)), records(2, (10,), seed=1)
    files = [write(tmp_path / "a.bin", first), write(tmp_path / "b", second, packed=True)]
    source = open_cifar(files, name="toy")
    assert source.arrays == {"input": Array("uint8", (3, 32, 32)), "label": Array("int64")}
    assert (len(source), source.classes) == (5, 10)
    rows = source.read(np.array([4, 0]))
    np.testing.assert_array_equal(rows["label"], [second[1, 0], first[0, 0]])
    # Record = label, 1024 red, 1024 green, 1024 blue, row by row: pixel (y, x) of channel c.
    assert rows["input"][0, 2, 5, 7] == second[1, 1 + 2 * 1024 + 5 * 32 + 7]


def test_fine_and_coarse(tmp_path: Path) -> None:
    values = records(4, (20, 100))
    path = write(tmp_path / "train.bin", values)
    fine, coarse = open_cifar([path], name="toy"), open_cifar([path], "coarse", name="toy")
    assert (fine.classes, coarse.classes) == (100, 20)
    np.testing.assert_array_equal(coarse.labels(), values[:, 0])
    np.testing.assert_array_equal(fine.labels(), values[:, 1])
    assert fine.fingerprint() != coarse.fingerprint()


def test_the_other_label_and_the_group_as_a_fact(tmp_path: Path) -> None:
    values = records(4, (20, 100))
    path = write(tmp_path / "train.bin", values)
    source = open_cifar([path], name="toy", labels_also=("coarse",), facts="coarse")
    assert list(source.arrays) == ["input", "label", "label.coarse", "fact"]
    assert source.label_classes == {"label.coarse": 20}
    rows = source.read(np.array([3, 0]))
    np.testing.assert_array_equal(rows["label"], values[[3, 0], 1])
    np.testing.assert_array_equal(rows["label.coarse"], values[[3, 0], 0])
    assert rows["fact"].dtype == np.float32
    np.testing.assert_array_equal(rows["fact"].argmax(1), values[[3, 0], 0])
    np.testing.assert_array_equal(rows["fact"].sum(1), 1)
    fine = open_cifar([path], "coarse", name="toy", labels_also=("fine",))
    assert fine.label_classes == {"label.fine": 100}
    np.testing.assert_array_equal(fine.read(fine.ids())["label.fine"], values[:, 1])
    prints = {open_cifar([path], name="toy", **keys).fingerprint() for keys in ({}, {"facts": "coarse"})}
    assert len(prints | {source.fingerprint()}) == 3
    with pytest.raises(UsageError, match="give each label once"):
        open_cifar([path], name="toy", labels_also=("fine",))
    with pytest.raises(UsageError, match="would tell the answer"):
        open_cifar([path], "coarse", name="toy", facts="coarse")
    ten = write(tmp_path / "ten", records(2, (10,)))
    with pytest.raises(SourceError, match="have one label; `labels_also` needs"):
        open_cifar([ten], name="toy", labels_also=("coarse",))
    with pytest.raises(SourceError, match="have one label; `facts` needs"):
        open_cifar([ten], name="toy", facts="coarse")


def test_a_size_that_fits_both_is_told_by_the_labels(tmp_path: Path) -> None:
    ten, hundred = records(3074, (10,)), records(3073, (20, 100))
    assert ten.size == hundred.size
    assert open_cifar([write(tmp_path / "ten", ten)], name="toy").classes == 10
    assert open_cifar([write(tmp_path / "hundred", hundred)], name="toy").classes == 100
    neither = write(tmp_path / "zeros", np.zeros_like(ten))
    with pytest.raises(SourceError, match="as CIFAR-10 and as CIFAR-100"):
        open_cifar([neither], name="toy")
    assert open_cifar([neither], name="toy", label_bytes=1).classes == 10


def test_refusals(tmp_path: Path) -> None:
    ten, hundred = write(tmp_path / "ten", records(2, (10,))), write(tmp_path / "hundred", records(2, (20, 100)))
    with pytest.raises(SourceError, match=r"hundred holds CIFAR-100 records and .*ten holds CIFAR-10"):
        open_cifar([ten, hundred], name="toy")
    with pytest.raises(SourceError, match="have one label"):
        open_cifar([ten], "coarse", name="toy")
    with pytest.raises(SourceError, match="6148 bytes are no whole number of CIFAR-10 records of 3073 bytes"):
        open_cifar([hundred], name="toy", label_bytes=1)
    with pytest.raises(SourceError, match="no whole number of records of 3073"):
        open_cifar([write(tmp_path / "short", records(1, (10,))[:, 9:])], name="toy")
    with pytest.raises(SourceError, match="empty; expected CIFAR records"):
        open_cifar([write(tmp_path / "empty", records(0, (10,)))], name="toy")
    wrong = records(3, (10,))
    wrong[1, 0] = 10
    with pytest.raises(SourceError, match=r"wrong \(label\): row 1 has label 10, allowed are 0 to 9"):
        open_cifar([write(tmp_path / "wrong", wrong)], name="toy")
    wrong = records(3, (20, 100))
    wrong[2, 0] = 20
    with pytest.raises(SourceError, match=r"\(coarse\): row 2 has label 20, allowed are 0 to 19"):
        open_cifar([write(tmp_path / "wrong", wrong)], name="toy")


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_mutated_files_are_read_or_refused(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    path = tmp_path_factory.getbasetemp() / "mutated-cifar"
    content = bytearray(records(2, data.draw(st.sampled_from([(10,), (20, 100)]))).tobytes())
    if data.draw(st.booleans()):
        content = bytearray(gzip.compress(content, 1))
    for _ in range(data.draw(st.integers(0, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content[: data.draw(st.sampled_from([len(content), len(content) - 1, 3074, 3073, 20, 5]))])
    try:
        source = open_cifar([path], name="toy")
    except SourceError:
        return
    assert source.read(source.ids())["input"].shape[1:] == (3, 32, 32)


@settings(max_examples=15, deadline=None)
@given(
    count=st.integers(1, 4), limits=st.sampled_from([(10,), (20, 100)]), packed=st.booleans(), seed=st.integers(0, 99)
)
def test_round_trip(
    tmp_path_factory: pytest.TempPathFactory, count: int, limits: tuple[int, ...], packed: bool, seed: int
) -> None:
    values = records(count, limits, seed)
    source = open_cifar([write(tmp_path_factory.getbasetemp() / "cifar", values, packed)], name="toy")
    rows = source.read(source.ids())
    np.testing.assert_array_equal(rows["input"].reshape(count, 3072), values[:, len(limits) :])
    np.testing.assert_array_equal(rows["label"], values[:, len(limits) - 1])
