"""Images with boxes: scaling, clipping, splits, masks; annotations that mean harm."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from kdcache.arrays import Array
from kdcache.config import SourceConfig
from kdcache.errors import SourceError, TrustError, UsageError
from kdcache.sources import Source, open_source
from kdcache.sources.annotations import read_annotation

Box = tuple[str, float, float, float, float]


def xml(boxes: list[Box], width: int = 40, height: int = 20) -> str:
    objects = "".join(
        f"<object><name>{name}</name><bndbox><xmin>{a}</xmin><ymin>{b}</ymin><xmax>{c}</xmax><ymax>{d}</ymax></bndbox>"
        "</object>"
        for name, a, b, c, d in boxes
    )
    return f"<annotation><size><width>{width}</width><height>{height}</height></size>{objects}</annotation>"


def add(root: Path, stem: str, boxes: list[Box], colour: int = 0) -> None:
    (root / "Annotations").mkdir(parents=True, exist_ok=True)
    (root / "JPEGImages").mkdir(exist_ok=True)
    (root / "Annotations" / f"{stem}.xml").write_text(xml(boxes))
    Image.new("RGB", (40, 20), (colour, 0, 0)).save(root / "JPEGImages" / f"{stem}.png")


def opened(root: Path, split: str = "train", **keys: object) -> Source:
    table = {"kind": "voc", "path": root, "split": split, "size": 10, **keys}
    return open_source(SourceConfig.model_validate(table))


@pytest.fixture
def cells(tmp_path: Path) -> Path:
    root = tmp_path / "cells"
    add(root, "a", [("red", 1, 1, 20, 10), ("white", 21, 11, 40, 20)], 10)
    add(root, "b", [("white", 31, 1, 60, 30), ("red", 50, 1, 60, 5), ("red", 9, 5, 12, 8)], 20)
    add(root, "c", [], 30)
    (root / "ImageSets" / "Main").mkdir(parents=True)
    (root / "ImageSets" / "Main" / "train.txt").write_text("b 1\na -1\n")
    (root / "ImageSets" / "Main" / "val.txt").write_text("c\n")
    return root


def test_boxes_are_scaled_clipped_and_padded(cells: Path) -> None:
    source = opened(cells)
    assert source.arrays == {
        "input": Array("uint8", (3, 10, 10)),
        "boxes": Array("float32", (3, 4)),
        "boxes.class": Array("int64", (3,)),
    }
    assert (source.class_names, source.classes, source.labels()) == (("background", "red", "white"), 3, None)
    assert source.ids().tolist() == [0, 1]
    rows = source.read(np.array([1, 0]))
    assert rows["input"][:, 0, 0, 0].tolist() == [20, 10]
    # 40×20 to 10×10: x by a quarter, y by a half; pixel numbers begin at 1 and their ends are inside.
    np.testing.assert_allclose(rows["boxes"][1], [[0, 0, 5, 5], [5, 5, 10, 10], [-1] * 4])
    assert rows["boxes.class"][1].tolist() == [1, 2, -1], "class 0 is the background"
    np.testing.assert_allclose(rows["boxes"][0], [[7.5, 0, 10, 10], [2, 2, 3, 4], [-1] * 4])
    assert rows["boxes.class"][0].tolist() == [2, 1, -1]
    assert (source.clipped, source.dropped) == (2, 1)
    wide = opened(cells, size=[20, 40], boxes=5)
    assert wide.arrays["input"].shape == (3, 20, 40)
    np.testing.assert_allclose(wide.read(np.array([0]))["boxes"][0, :2], [[0, 0, 20, 10], [20, 10, 40, 20]])
    empty = opened(cells, "val").read(np.array([2]))
    assert (empty["boxes"] == -1).all()
    assert (empty["boxes.class"] == -1).all()


def test_splits(cells: Path) -> None:
    assert opened(cells, "trainval").ids().tolist() == [0, 1, 2]
    with pytest.raises(UsageError, match=r"has no split 'test'; .* has train, val"):
        opened(cells, "test")
    (cells / "ImageSets" / "Main" / "test.txt").write_text("a\n../../secret\n")
    with pytest.raises(SourceError, match=r"names '../../secret', of which there is no annotation"):
        opened(cells, "test")
    (cells / "ImageSets" / "Main" / "test.txt").write_text("a\na\n")
    with pytest.raises(SourceError, match="names 2 images, 1 different ones"):
        opened(cells, "test")


def test_without_lists_a_fifth_is_for_testing(tmp_path: Path) -> None:
    for number in range(11):
        add(tmp_path, f"{number:02}", [("red", 1, 1, 4, 4)])
    train, test = opened(tmp_path, "train"), opened(tmp_path, "test")
    assert (len(train), len(test)) == (9, 2)
    assert sorted([*train.ids(), *test.ids()]) == list(range(11))
    assert test.ids().tolist() == opened(tmp_path, "test").ids().tolist() == [2, 4]
    with pytest.raises(UsageError, match=r"has no split 'val'; without .*ImageSets"):
        opened(tmp_path, "val")


def test_masks_are_ellipses_and_the_smallest_counts(tmp_path: Path) -> None:
    add(tmp_path, "a", [("red", 1, 1, 4, 20), ("white", 1, 1, 40, 20)])
    source = opened(tmp_path, mask=True, mask_size=[20, 40], size=[20, 40])
    assert source.arrays["label"] == Array("int64", (800,))
    assert (source.class_names, source.classes) == (("background", "red", "white"), 3)
    mask = source.read(np.array([0]))["label"][0].reshape(20, 40)
    inside = [[((x + 0.5 - 20) / 20) ** 2 + ((y + 0.5 - 10) / 10) ** 2 <= 1 for x in range(40)] for y in range(20)]
    thin = [[((x + 0.5 - 2) / 2) ** 2 + ((y + 0.5 - 10) / 10) ** 2 <= 1 for x in range(40)] for y in range(20)]
    np.testing.assert_array_equal(mask, np.where(thin, 1, np.where(inside, 2, 0)))
    assert mask[0, 0] == 0, "a corner of the box is no cell"
    half = opened(tmp_path, mask=True, mask_size=10).read(np.array([0]))["label"]
    assert half.shape == (1, 100)
    np.testing.assert_array_equal(opened(tmp_path, mask=True).read(np.array([0]))["label"], half)
    assert source.read(np.array([], np.int64))["label"].shape == (0, 800)
    bare = opened(tmp_path, mask=True, unlabelled=True)
    assert set(bare.arrays) == set(bare.read(np.array([0]))) == {"input"}


def test_fingerprint_is_of_images_boxes_and_keys(cells: Path) -> None:
    keys = ({}, {"size": 12}, {"mask": True}, {"mask": True, "mask_size": 5}, {"boxes": 4}, {"split": "val"})
    prints = {opened(cells, **each).fingerprint() for each in keys}
    assert len(prints) == len(keys)
    assert opened(cells).fingerprint() in prints
    add(cells, "a", [("red", 1, 1, 20, 10), ("white", 21, 11, 40, 19)], 10)
    assert opened(cells).fingerprint() not in prints
    add(cells, "a", [("red", 1, 1, 20, 10), ("white", 21, 11, 40, 20)], 11)
    assert opened(cells).fingerprint() not in prints


BOMB = '<?xml version="1.0"?><!DOCTYPE a [<!ENTITY b "bbbb">]><annotation>&b;</annotation>'


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (BOMB, "declares a document type or an entity"),
        (BOMB.replace("DOCTYPE", "doctype"), "declares a document type"),
        ('<!DOCTYPE a SYSTEM "file:///etc/passwd"><annotation/>', "declares a document type"),
        (BOMB.encode("utf-16"), "byte 0 is not UTF-8"),
        ("", "not an XML file, or damaged"),
        ("<annotation>", "not an XML file"),
        ("<annotation>&b;</annotation>", "not an XML file"),
        ("<html/>", "holds <html>"),
        ("<annotation>" + "<a>" * 100_000, "not an XML file"),
        ("<annotation>" + " " * (1 << 20) + "</annotation>", "more than 1048576 bytes"),
        ("<annotation><object/></annotation>", "object 1: has no <name>"),
        ("<annotation><object><name>x</name></object></annotation>", "object 1: <xmin>: is 'None'; expected a number"),
        (xml([("x", 1, 1, 5, 5)]).replace("5</ymax>", "nan</ymax>"), "<ymax>: is 'nan'"),
        (xml([("x", 1, 1, 5, 5)]).replace("5</ymax>", "1e99</ymax>"), "<ymax>: is '1e99'"),
        (xml([("x", 9, 1, 5, 5)]), "its box ends before it begins"),
        (xml([("x", 1, 1, 5, 5)], width=41), "is 40×20 pixels, its annotation says 41×20"),
        (xml([("x", 1, 1, 5, 5)], width=0), None),
    ],
)  # fmt: skip
def test_annotations(cells: Path, content: str | bytes, said: str | None) -> None:
    (cells / "Annotations" / "a.xml").write_bytes(content if isinstance(content, bytes) else content.encode())
    if said is None:
        assert opened(cells).read(np.array([0]))["boxes.class"][0, 0] == 3
        return
    with pytest.raises(SourceError, match=said):
        opened(cells)


def test_what_is_missing_or_leads_out(cells: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"boxes = 2: b has 3"):
        opened(cells, boxes=2)
    with pytest.raises(SourceError, match=r"Annotations: holds no \.xml"):
        opened(tmp_path)
    picture = cells / "JPEGImages" / "a.png"
    content = picture.read_bytes()
    picture.unlink()
    with pytest.raises(SourceError, match="no image of this name"):
        opened(cells)
    (tmp_path / "secret.png").write_bytes(content)
    picture.symlink_to(tmp_path / "secret.png")
    with pytest.raises(TrustError, match="outside of the folder"):
        opened(cells)
    picture.unlink()
    picture.write_bytes(content[:20])
    with pytest.raises(SourceError, match=r"a\.png: cannot be read as an image"):
        opened(cells)
    picture.write_bytes(content[:-30])
    cut = opened(cells)
    with pytest.raises(SourceError, match=r"a\.png: cannot be read as an image"):
        cut.read(cut.ids())


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_mutated_annotations_are_read_or_refused(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    path = tmp_path_factory.getbasetemp() / "mutated.xml"
    content = bytearray(xml([("x", 1, 1, 5, 5), ("y", 2, 2, 3, 3)]).encode())
    for _ in range(data.draw(st.integers(0, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    try:
        found = read_annotation(path)
    except SourceError:
        return
    assert len(found.names) == len(found.boxes)
    assert all(box[2] > box[0] and box[3] > box[1] for box in found.boxes)


def test_bccd(data_root: Path) -> None:
    if not (data_root / "bccd").is_dir():
        pytest.skip(f"no bccd in {data_root}")
    counts = np.zeros(4, int)
    rows = 0
    for split in ("train", "val", "test"):
        source = open_source(SourceConfig(dataset="bccd", split=split, size=(96, 128)))
        found = source.read(source.ids())
        kept = found["boxes.class"] >= 0
        counts += np.bincount(found["boxes.class"][kept], minlength=4)
        boxes = found["boxes"][kept]
        assert (boxes >= 0).all()
        assert (boxes <= [128, 96, 128, 96]).all()
        assert (boxes[:, 2:] > boxes[:, :2]).all()
        rows += len(source)
    # The counts of objects that came with the files.
    assert source.class_names == ("background", "RBC", "WBC", "Platelets")
    assert (counts.tolist(), rows) == ([0, 1406, 107, 128], 100)
    # White cells are stained: where a mask says so the image is darker in green than the background.
    masked = open_source(SourceConfig(dataset="bccd", split="train", size=(96, 128), mask=True))
    found = masked.read(masked.ids())
    green = found["input"][:, 1].reshape(len(masked), -1)
    assert green[found["label"] == 2].mean() < green[found["label"] == 0].mean() - 30


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"size": 2**20}, "size = "),
        ({"mask": True, "mask_size": 2**39}, "mask_size = "),
        ({"boxes": 2**39}, "boxes = "),
    ],
)
def test_sizes_that_no_memory_holds_are_refused(cells: Path, keys: dict[str, object], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        opened(cells, **keys)


def test_a_link_to_itself(cells: Path) -> None:
    (cells / "Annotations" / "a.xml").unlink()
    (cells / "Annotations" / "a.xml").symlink_to("a.xml")
    with pytest.raises(SourceError, match=r"a\.xml"):
        opened(cells)
