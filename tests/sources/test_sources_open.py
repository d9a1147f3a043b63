"""`open_source`: what a [source] table may say; the known sets, on the real files."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest

from kdcache.arrays import Array
from kdcache.config import SourceConfig
from kdcache.errors import MissingData, SourceError, UsageError
from kdcache.sources import Source, is_present, known_datasets, open_source


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("KDCACHE_DATA", str(tmp_path))
    return tmp_path


def check(source: Source, rows: int, input_array: Array, classes: int) -> np.ndarray:
    assert isinstance(source, Source)
    assert len(source) == rows == len(source.ids())
    assert source.arrays == {"input": input_array, "label": Array("int64")}
    assert source.classes == classes == len(source.class_names)
    read = source.read(source.ids())
    assert read["input"].dtype == np.uint8
    return np.bincount(read["label"], minlength=classes)


def test_fashion_mnist(data_root: Path) -> None:
    known = open_source(SourceConfig(dataset="fashion-mnist", split="test"))
    assert check(known, 10_000, Array("uint8", (28, 28)), 10).tolist() == [1000] * 10
    assert known.class_names[9] == "Ankle boot"
    folder = data_root / "fashion-mnist"
    named = open_source(
        SourceConfig(
            kind="idx", images=folder / "t10k-images-idx3-ubyte.gz", labels=folder / "t10k-labels-idx1-ubyte.gz"
        )
    )
    assert named.classes == 10
    assert named.fingerprint() == known.fingerprint()
    with pytest.raises(SourceError, match=r"holds 10000 images and .*train-labels.* holds 60000 labels"):
        open_source(
            SourceConfig(
                kind="idx", images=folder / "t10k-images-idx3-ubyte.gz", labels=folder / "train-labels-idx1-ubyte.gz"
            )
        )


def test_cifar_subsets(data_root: Path) -> None:
    ten = open_source(SourceConfig(dataset="cifar-10", split="test"))
    assert check(ten, 2000, Array("uint8", (3, 32, 32)), 10).tolist() == [200] * 10
    # The channels' means that came with the files: a mix-up of planes would show.
    means = ten.read(ten.ids())["input"].mean(axis=(0, 2, 3), dtype=np.float64)
    np.testing.assert_allclose(means, [126.6, 124.3, 115.9], atol=0.05)
    fine = open_source(SourceConfig(dataset="cifar-100", split="test"))
    assert check(fine, 2000, Array("uint8", (3, 32, 32)), 100).tolist() == [20] * 100
    coarse = open_source(SourceConfig(dataset="cifar-100", split="test", label="coarse"))
    assert check(coarse, 2000, Array("uint8", (3, 32, 32)), 20).tolist() == [100] * 20


def test_names_of_classes_are_those_beside_the_files(data_root: Path) -> None:
    known = known_datasets()
    assert known["cifar-10"].class_names == tuple((data_root / "cifar-10/batches.meta.txt").read_text().split())
    for names, file in (("class_names", "fine"), ("coarse_names", "coarse")):
        text = (data_root / f"cifar-100/{file}_label_names.txt").read_text()
        assert getattr(known["cifar-100"], names) == tuple(text.split())


def test_digits() -> None:
    train = open_source(SourceConfig(dataset="digits"))
    test = open_source(SourceConfig(kind="digits", split="test"))
    check(train, 1297, Array("uint8", (8, 8)), 10)
    assert check(test, 500, Array("uint8", (8, 8)), 10).min() > 25
    assert test.read(test.ids())["input"].max() == 16
    assert not np.intersect1d(train.ids(), test.ids()).size
    assert test.ids()[:6].tolist() == [0, 3, 4, 19, 22, 25]
    assert train.fingerprint() != test.fingerprint()
    with pytest.raises(UsageError, match="has no split 'val'"):
        open_source(SourceConfig(kind="digits", split="val"))


def test_rows_and_labelled_go_together() -> None:
    source = open_source(SourceConfig(kind="digits", rows=200, labelled=20, seed=5))
    labels = source.read(source.ids())["label"]
    assert (len(source), int((labels >= 0).sum()), source.classes) == (200, 20, 10)


def test_absent_known_set_says_where_and_how(elsewhere: Path) -> None:
    with pytest.raises(MissingData, match=r"looked in .*fashion-mnist.*run `kdcache data get fashion-mnist`"):
        open_source(SourceConfig(dataset="fashion-mnist"))
    assert not is_present("fashion-mnist", "train")
    assert is_present("digits", "train")


@pytest.mark.parametrize("name", ["sst2", "nab", "cora", "bccd"])
def test_absent_set_that_no_command_fetches_says_where_to_take_it_from(elsewhere: Path, name: str) -> None:
    with pytest.raises(MissingData, match=rf"looked in .*{name} for .*no command fetches it: .* there from .*github"):
        open_source(SourceConfig(dataset=name, size=8 if name == "bccd" else None))


def test_a_part_of_cifar_will_do_and_plain_goes_before_packed(elsewhere: Path) -> None:
    folder = elsewhere / "cifar-10"
    folder.mkdir()
    (folder / "data_batch_2.bin.gz").write_bytes(gzip.compress(bytes([4]) + bytes(3072)))
    (folder / "data_batch_4.bin").write_bytes(bytes([5]) + bytes(3072))
    (folder / "data_batch_4.bin.gz").write_bytes(gzip.compress(bytes([6]) + bytes(3072)))
    source = open_source(SourceConfig(dataset="cifar-10"))
    assert source.read(source.ids())["label"].tolist() == [4, 5]
    assert source.classes == 10


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ({"dataset": "fashon-mnist"}, "did you mean 'fashion-mnist'"),
        ({"dataset": "imagenet"}, "known: bccd, cifar-10, cifar-100, cora, digits"),
        ({"dataset": "cifar-10", "split": "val"}, "cifar-10 has train, test"),
        ({"dataset": "fashion-mnist", "label": "coarse"}, "fashion-mnist has one label per image"),
        (
            {"dataset": "cifar-10", "images": "x"},
            "`images` is not for dataset, which takes channels, facts, label, labels_also, side, split",
        ),
        (
            {"kind": "idx", "images": "x", "size": 3},
            '`size` is not for kind = "idx", which takes channels, classes, images, labels, side',
        ),
        ({"kind": "idx"}, "kind = 'idx' needs `images`"),
        ({"kind": "cifar"}, "needs `files`"),
        ({"kind": "arrays"}, "either `path`"),
        ({"kind": "arrays", "path": "x", "images": "y"}, "either `path`"),
        ({"kind": "folder"}, "needs `path`"),
        ({"kind": "python"}, "needs `factory`"),
        ({"kind": "digits", "rows": 1298}, "rows = 1298 is more than the 1297"),
        ({"kind": "tsv"}, "needs `files`"),
        ({"kind": "series"}, "either `files`"),
        ({"kind": "series", "path": "x", "files": ["y.csv"]}, "either `files`"),
        ({"kind": "graph"}, "kind = 'graph' needs `path`"),
        ({"kind": "voc"}, "kind = 'voc' needs `path`"),
        ({"kind": "voc", "path": "x"}, "needs `size`"),
        ({"kind": "voc", "path": "x", "size": 8, "mask_size": 4}, "add mask = true"),
        ({"kind": "voc", "path": "x", "size": 8, "labelled": 4}, "in images with boxes every box has its own"),
        ({"kind": "folder", "path": "x", "size": [8, 9]}, "takes `size` as one side"),
        ({"kind": "text", "files": ["x"], "unlabelled": True}, "`unlabelled` does not go with text"),
        ({"kind": "digits", "unlabelled": True, "labelled": 5}, "`unlabelled` does not go with `labelled`"),
        ({"kind": "voc", "path": "x", "size": 8, "side": 4}, '`side` is not for kind = "voc"'),
        ({"dataset": "sst2", "document": "line"}, "`document` is not for dataset of tsv, which takes length"),
        ({"dataset": "cora", "split": "dev"}, "cora has train, val, test"),
        ({"dataset": "cifar-10", "facts": "coarse"}, "cifar-10 has one label per image"),
    ],
)
def test_tables_that_cannot_work(table: dict[str, object], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        open_source(SourceConfig.model_validate(table))


def test_every_kind_opens(tmp_path: Path) -> None:
    from PIL import Image

    np.save(tmp_path / "x.npy", np.zeros((2, 3), np.float32))
    np.savez(tmp_path / "x.npz", a=np.zeros((2, 3), np.float32), b=np.array([0, 1]))
    (tmp_path / "c.bin").write_bytes(bytes(3073))
    (tmp_path / "pets" / "cat").mkdir(parents=True)
    Image.new("RGB", (2, 2)).save(tmp_path / "pets" / "cat" / "1.png")
    tables = [
        {"kind": "arrays", "images": tmp_path / "x.npy"},
        {"kind": "arrays", "path": tmp_path / "x.npz", "input_key": "a", "label_key": "b"},
        {"kind": "cifar", "files": [tmp_path / "c.bin"]},
        {"kind": "folder", "path": tmp_path / "pets"},
        {"kind": "python", "factory": "kdcache.sources.digits:open_digits", "args": {"split": "test"}},
    ]
    names = [open_source(SourceConfig.model_validate(table)).name for table in tables]
    assert names == ["x.npy", "x.npz", "c.bin", "pets", "kdcache.sources.digits:open_digits"]
