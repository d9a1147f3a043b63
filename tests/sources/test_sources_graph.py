"""Nodes of a graph: which labels are shown, and that the others are nowhere."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from kdcache.arrays import Array
from kdcache.config import SourceConfig
from kdcache.errors import SourceError, UsageError
from kdcache.sources import Source, open_source

Y = np.array([0, 1, 2, 0, 1])
MASKS = {"train": [0, 1], "val": [2], "test": [4, 3]}


def write(path: Path, **changes: np.ndarray) -> Path:
    """A path of five nodes, node i with i + 1 words."""
    counts = np.arange(1, 6)
    arrays = {
        "x_data": np.ones(counts.sum(), np.float32),
        "x_indices": np.concatenate([np.arange(count) for count in counts]).astype(np.int32),
        "x_indptr": np.concatenate([[0], np.cumsum(counts)]).astype(np.int32),
        "x_shape": np.array([5, 6]),
        "y": Y,
        "edges": np.array([[0, 1, 2, 3], [1, 2, 3, 4]]),
        **{f"{name}_mask": np.isin(np.arange(5), nodes) for name, nodes in MASKS.items()},
    }
    np.savez(path, **{**arrays, **changes})
    return path


def opened(path: Path, split: str = "train", **keys: object) -> Source:
    return open_source(SourceConfig.model_validate({"kind": "graph", "path": path, "split": split, **keys}))


def test_train_has_every_node_and_only_its_own_labels(tmp_path: Path) -> None:
    source = opened(write(tmp_path / "toy.npz"))
    assert source.arrays == {"input": Array("float32", (6,)), "label": Array("int64"), "node": Array("int64")}
    assert (len(source), source.classes, source.name) == (5, 3, "toy.npz")
    rows = source.read(source.ids())
    assert rows["label"].tolist() == [0, 1, -1, -1, -1]
    assert rows["node"].tolist() == source.ids().tolist() == [0, 1, 2, 3, 4]
    np.testing.assert_allclose(rows["input"][2], [1 / 3, 1 / 3, 1 / 3, 0, 0, 0], rtol=1e-6)


@pytest.mark.parametrize("split", ["val", "test"])
def test_other_splits_have_their_own_nodes(tmp_path: Path, split: str) -> None:
    source = opened(write(tmp_path / "toy.npz"), split)
    nodes = sorted(MASKS[split])
    assert source.ids().tolist() == nodes
    rows = source.read(np.array(nodes[::-1]))
    assert rows["node"].tolist() == nodes[::-1]
    assert rows["label"].tolist() == Y[nodes[::-1]].tolist()
    np.testing.assert_array_equal(source.labels(), Y[nodes])


def test_the_fingerprint_is_of_features_shown_labels_split_and_edges(tmp_path: Path) -> None:
    plain = opened(write(tmp_path / "a.npz")).fingerprint()
    assert opened(write(tmp_path / "b.npz")).fingerprint() == plain
    hidden = Y.copy()
    hidden[4] = 2
    assert opened(write(tmp_path / "b.npz", y=hidden)).fingerprint() == plain, "a hidden label is nowhere in it"
    fewer = opened(write(tmp_path / "c.npz", edges=np.array([[0, 1], [1, 2]]))).fingerprint()
    prints = {
        plain,
        fewer,
        opened(tmp_path / "a.npz", "test").fingerprint(),
        opened(tmp_path / "a.npz", "val").fingerprint(),
    }
    assert len(prints) == 4


def test_what_cannot_work(tmp_path: Path) -> None:
    path = write(tmp_path / "toy.npz")
    with pytest.raises(UsageError, match="has no split 'dev'; a graph has train, val, test"):
        opened(path, "dev")
    with pytest.raises(SourceError, match="its val_mask takes no node"):
        opened(write(tmp_path / "none.npz", val_mask=np.zeros(5, bool)), "val")
    with pytest.raises(SourceError, match="no such file"):
        opened(tmp_path / "nowhere.npz")
    (tmp_path / "bad.npz").write_bytes(path.read_bytes()[:200])
    with pytest.raises(SourceError, match="not an npz file, or damaged"):
        opened(tmp_path / "bad.npz")
    with pytest.raises(SourceError, match="y is object"):
        opened(write(tmp_path / "object.npz", y=np.array([{}] * 5, dtype=object)))
    assert "label" not in opened(path, unlabelled=True).arrays
    assert opened(path, labelled=1).read(np.arange(5))["label"].tolist().count(-1) == 4


def test_cora(data_root: Path) -> None:
    if not (data_root / "cora").is_dir():
        pytest.skip(f"no cora in {data_root}")
    train, val, test = (open_source(SourceConfig(dataset="cora", split=split)) for split in ("train", "val", "test"))
    rows = train.read(train.ids())
    assert np.bincount(rows["label"] + 1).tolist() == [2568] + [20] * 7
    assert not np.isin(np.flatnonzero(rows["label"] >= 0), np.concatenate([val.ids(), test.ids()])).any()
    assert (len(train), len(val), len(test)) == (2708, 500, 1000)
    assert (test.read(test.ids())["label"] >= 0).all()
    np.testing.assert_allclose(rows["input"].sum(1)[rows["input"].any(1)], 1, rtol=1e-5)
    assert train.class_names[3] == "Neural_Networks"
    assert train.classes == test.classes == 7


def test_features_at_the_edge_of_float32(tmp_path: Path) -> None:
    """Their magnitudes sum to more than float32 holds, and are divided by it all the same."""
    source = opened(write(tmp_path / "large.npz", x_data=np.full(15, 3e38)))
    np.testing.assert_allclose(source.read(source.ids())["input"].sum(axis=1), 1, rtol=1e-6)
    with pytest.raises(SourceError, match="beyond float32"):
        opened(write(tmp_path / "larger.npz", x_data=np.full(15, 1e300)))


def test_classes_that_no_network_has(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="must give classes"):
        opened(write(tmp_path / "toy.npz", y=np.array([0, 1, 2, 0, 2**62])))
