"""IDX: what is read, and how every kind of bad file is refused."""

from __future__ import annotations

import gzip
import re
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdcache.arrays import Array
from kdcache.errors import SourceError
from kdcache.sources.idx import open_idx, read_idx


def idx(values: np.ndarray) -> bytes:
    return struct.pack(f">I{values.ndim}I", 0x0800 + values.ndim, *values.shape) + values.astype(np.uint8).tobytes()


IMAGES = np.arange(3 * 2 * 4, dtype=np.uint8).reshape(3, 2, 4)
LABELS = np.array([2, 0, 1], np.uint8)


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    images, labels = tmp_path / "images", tmp_path / "labels"
    images.write_bytes(gzip.compress(idx(IMAGES)))
    labels.write_bytes(idx(LABELS))
    return images, labels


def test_gzip_and_plain_by_content(pair: tuple[Path, Path]) -> None:
    source = open_idx(*pair, name="toy")
    assert source.arrays == {"input": Array("uint8", (2, 4)), "label": Array("int64")}
    assert (len(source), source.classes) == (3, 3)
    rows = source.read(np.array([2, 0]))
    np.testing.assert_array_equal(rows["input"], IMAGES[[2, 0]])
    np.testing.assert_array_equal(rows["label"], [1, 2])
    assert rows["label"].dtype == np.int64
    assert rows["input"].flags.c_contiguous


def test_fingerprint_is_of_the_samples_not_of_their_packing(pair: tuple[Path, Path]) -> None:
    before = open_idx(*pair, name="toy").fingerprint()
    pair[0].write_bytes(idx(IMAGES))
    assert open_idx(*pair, name="other").fingerprint() == before
    pair[0].write_bytes(idx(IMAGES + 1))
    assert open_idx(*pair, name="toy").fingerprint() != before


def test_without_labels(pair: tuple[Path, Path]) -> None:
    source = open_idx(pair[0], None, name="toy")
    assert "label" not in source.arrays
    assert source.classes is None


def test_labels_given_as_images_and_the_reverse(pair: tuple[Path, Path]) -> None:
    said = "expected an IDX images file, magic 2051, found magic 2049, which is a labels file"
    with pytest.raises(SourceError, match=said):
        open_idx(pair[1], pair[1], name="toy")
    with pytest.raises(SourceError, match="found magic 2051, which is an images file"):
        open_idx(pair[0], pair[0], name="toy")


def test_counts_must_agree(pair: tuple[Path, Path]) -> None:
    pair[1].write_bytes(idx(LABELS[:2]))
    with pytest.raises(SourceError, match=r"images holds 3 images and .*labels holds 2 labels"):
        open_idx(*pair, name="toy")


def test_label_out_of_range_names_file_row_value_and_range(pair: tuple[Path, Path]) -> None:
    with pytest.raises(SourceError, match=re.escape(f"{pair[1]}: row 0 has label 2, allowed are 0 to 1")):
        open_idx(*pair, name="toy", classes=2)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "the file holds 0"),
        (idx(IMAGES)[:9], "with a header of 16 bytes; the file holds 9"),
        (b"\x89PNG\r\n\x1a\n" + b"\0" * 20, "found magic 2303741511"),
        (idx(IMAGES)[:-1], "= 24 bytes, but 23 follow"),
        (idx(IMAGES) + b"\0", "= 24 bytes, but more follow"),
        (struct.pack(">4I", 2051, 0, 28, 28), "it holds nothing"),
        (struct.pack(">4I", 2051, 4294967295, 65535, 65535), "but 0 follow"),
    ],
)
def test_bad_files(tmp_path: Path, content: bytes, said: str) -> None:
    for packed in (content, gzip.compress(content)):
        (tmp_path / "images").write_bytes(packed)
        if packed is not content:
            said = said.replace("but 0 follow", r"can be unpacked from it at most")
        with pytest.raises(SourceError, match=said):
            read_idx(tmp_path / "images", 2051)


def test_a_bomb_is_refused_before_it_is_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(np, "empty", lambda *_: pytest.fail("allocated before the size was checked"))
    bomb = tmp_path / "bomb.gz"
    bomb.write_bytes(gzip.compress(struct.pack(">4I", 2051, 1 << 20, 1 << 12, 1 << 12) + b"\0" * (1 << 20)))
    with pytest.raises(SourceError, match="can be unpacked from it at most"):
        read_idx(bomb, 2051)


def test_truncated_gzip_missing_file_and_folder(tmp_path: Path, pair: tuple[Path, Path]) -> None:
    pair[0].write_bytes(pair[0].read_bytes()[:-6])
    with pytest.raises(SourceError, match="damaged or cut short"):
        open_idx(*pair, name="toy")
    with pytest.raises(SourceError, match="nowhere: no such file"):
        open_idx(tmp_path / "nowhere", pair[1], name="toy")
    with pytest.raises(SourceError, match="a folder or a device"):
        open_idx(tmp_path, pair[1], name="toy")


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_mutated_files_are_read_or_refused(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    path = tmp_path_factory.getbasetemp() / "mutated"
    packed = data.draw(st.booleans())
    content = bytearray(gzip.compress(idx(IMAGES)) if packed else idx(IMAGES))
    for _ in range(data.draw(st.integers(0, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content[: data.draw(st.integers(0, len(content)))] + data.draw(st.binary(max_size=3)))
    try:
        found = read_idx(path, 2051)
    except SourceError:
        return
    assert found.ndim == 3
    assert found.size


@settings(max_examples=25, deadline=None)
@given(shape=st.tuples(*[st.integers(1, 5)] * 3), packed=st.booleans(), seed=st.integers(0, 99))
def test_round_trip(tmp_path_factory: pytest.TempPathFactory, shape: tuple[int, ...], packed: bool, seed: int) -> None:
    values = np.random.default_rng(seed).integers(0, 256, shape, np.uint8)
    path = tmp_path_factory.getbasetemp() / "round-trip"
    path.write_bytes(gzip.compress(idx(values)) if packed else idx(values))
    np.testing.assert_array_equal(read_idx(path, 2051), values)
