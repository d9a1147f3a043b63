"""Images brought to one size or number of channels; labels left out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kdcache.arrays import Array
from kdcache.config import SourceConfig
from kdcache.errors import UsageError
from kdcache.sources import open_source
from kdcache.sources.images import ImagesAs
from kdcache.sources.source import ArraySource
from kdcache.sources.wrapped import Unlabelled


def toy(*shape: int, dtype: str = "uint8", **keys: object) -> ArraySource:
    pixels = np.random.default_rng(0).integers(0, 256, (6, *shape)).astype(dtype)
    return ArraySource("toy", pixels, np.arange(6) % 3, classes=3, class_names=("a", "b", "c"), **keys)


@pytest.mark.parametrize(
    ("given", "side", "channels", "shape"),
    [
        ((8, 10), None, 3, (3, 8, 10)),
        ((8, 10), None, 1, (1, 8, 10)),
        ((8, 10), 4, None, (4, 4)),
        ((1, 8, 8), 16, 3, (3, 16, 16)),
        ((3, 8, 10), None, 1, (1, 8, 10)),
        ((3, 8, 8), 4, None, (3, 4, 4)),
        ((3, 8, 8), 4, 1, (1, 4, 4)),
        ((3, 8, 8), None, 3, (3, 8, 8)),
    ],
)
def test_shapes(given: tuple[int, ...], side: int | None, channels: int | None, shape: tuple[int, ...]) -> None:
    whole = toy(*given)
    source = ImagesAs(whole, side, channels)
    assert source.arrays == {"input": Array("uint8", shape), "label": Array("int64")}
    assert (len(source), source.classes, source.class_names, source.name) == (6, 3, ("a", "b", "c"), "toy")
    ids = np.array([5, 2, 2])
    rows = source.read(ids)
    assert rows["input"].shape == (3, *shape)
    assert rows["input"].flags.c_contiguous
    np.testing.assert_array_equal(rows["label"], ids % 3)
    np.testing.assert_array_equal(source.labels(), whole.labels())
    np.testing.assert_array_equal(
        rows["input"][0], source.read(source.ids())["input"][5], "a row depends on itself alone"
    )


def test_values_are_pillows(tmp_path: Path) -> None:
    whole = toy(3, 9, 9)
    images = whole.read(whole.ids())["input"]
    grey = ImagesAs(whole, None, 1).read(whole.ids())["input"]
    small = ImagesAs(whole, 4, None).read(whole.ids())["input"]
    for image, one, other in zip(images, grey, small, strict=True):
        picture = Image.fromarray(image.transpose(1, 2, 0))
        np.testing.assert_array_equal(one[0], picture.convert("L"))
        np.testing.assert_array_equal(other.transpose(1, 2, 0), picture.resize((4, 4), Image.Resampling.BILINEAR))
    grey_source = toy(9, 9)
    np.testing.assert_array_equal(
        ImagesAs(grey_source, None, 3).read(np.array([1]))["input"][0],
        np.stack([grey_source.read(np.array([1]))["input"][0]] * 3),
    )
    np.testing.assert_array_equal(ImagesAs(whole, 9, 3).read(whole.ids())["input"], images)


def test_fingerprints_tell_them_apart() -> None:
    whole = toy(3, 8, 8)
    variants = [whole, ImagesAs(whole, 4, None), ImagesAs(whole, 4, 1), ImagesAs(whole, None, 1), Unlabelled(whole)]
    assert len({each.fingerprint() for each in variants}) == 5
    assert ImagesAs(toy(3, 8, 8), 4, 1).fingerprint() == variants[2].fingerprint()


@pytest.mark.parametrize(
    ("shape", "dtype"), [((3, 8, 8), "float32"), ((64,), "uint8"), ((2, 8, 8), "uint8"), ((), "uint8")]
)
def test_what_is_no_image(shape: tuple[int, ...], dtype: str) -> None:
    with pytest.raises(UsageError, match="are for images uint8"):
        ImagesAs(toy(*shape, dtype=dtype), 4, None)


def test_unlabelled_leaves_out_all_that_tells() -> None:
    more = {
        "label.coarse": np.arange(6),
        "boxes": np.zeros((6, 2, 4), np.float32),
        "boxes.class": np.zeros((6, 2), int),
        "labels_of_another_kind": np.arange(6),
    }
    whole = toy(8, 8, more=more, label_classes={"label.coarse": 6})
    source = Unlabelled(whole)
    assert set(source.arrays) == set(source.read(np.array([0]))) == {"input", "labels_of_another_kind"}
    assert (source.labels(), source.classes, source.label_classes) == (None, 3, {})
    assert ImagesAs(whole, 4, None).label_classes == {"label.coarse": 6}


def test_keys_of_a_source() -> None:
    plain = open_source(SourceConfig(kind="digits"))
    table = {"kind": "digits", "side": 12, "channels": 3, "rows": 40, "labelled": 10}
    source = open_source(SourceConfig.model_validate(table))
    assert source.arrays["input"] == Array("uint8", (3, 12, 12))
    rows = source.read(source.ids())
    assert (rows["label"] >= 0).sum() == 10
    alike = open_source(SourceConfig(kind="digits", rows=40))
    np.testing.assert_array_equal(source.ids(), alike.ids(), "the choice of rows does not depend on their size")
    bare = open_source(SourceConfig(kind="digits", unlabelled=True))
    assert set(bare.arrays) == {"input"}
    assert bare.classes == 10
    assert bare.ids().tolist() == plain.ids().tolist()


def test_real_sets_meet_in_one_shape(data_root: Path) -> None:
    clothes = open_source(SourceConfig(dataset="fashion-mnist", split="test", side=32, channels=3, rows=50))
    photographs = open_source(SourceConfig(dataset="cifar-10", split="test", rows=50))
    assert clothes.arrays == photographs.arrays
    grey = open_source(SourceConfig(dataset="cifar-10", split="test", side=28, channels=1, rows=50))
    same = open_source(SourceConfig(dataset="fashion-mnist", split="test", channels=1, rows=50))
    assert grey.arrays == same.arrays
    before, after = photographs.read(photographs.ids())["input"], grey.read(grey.ids())["input"]
    luma = np.tensordot([0.299, 0.587, 0.114], before.mean(axis=(2, 3)).T, axes=1)
    np.testing.assert_allclose(after.mean(axis=(1, 2, 3)), luma, atol=1.0)


def test_cifar_100_with_its_groups(data_root: Path) -> None:
    table = {"dataset": "cifar-100", "split": "test", "labels_also": ["coarse"], "facts": "coarse"}
    source = open_source(SourceConfig.model_validate(table))
    rows = source.read(source.ids())
    assert source.label_classes == {"label.coarse": 20}
    np.testing.assert_array_equal(rows["fact"].argmax(1), rows["label.coarse"])
    coarse = open_source(SourceConfig(dataset="cifar-100", split="test", label="coarse"))
    np.testing.assert_array_equal(rows["label.coarse"], coarse.labels())
    pairs = set(zip(rows["label"].tolist(), rows["label.coarse"].tolist(), strict=True))
    assert len(pairs) == 100, "each kind is in one group"
