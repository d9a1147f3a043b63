"""Graph files: Cora as it is published, a graph by hand, and everything that can be wrong with a file."""

from __future__ import annotations

import io
import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kdcache.errors import SourceError
from kdcache.zoo.graph_file import read_graph

# Four nodes with three features; node 3 has none. Edges 0-1, 0-2, 1-2.
SMALL: dict[str, Any] = {
    "x_data": np.array([1, 1, 2, -2, 4], np.float32),
    "x_indices": np.array([0, 2, 1, 0, 2], np.int32),
    "x_indptr": np.array([0, 2, 4, 5, 5], np.int32),
    "x_shape": np.array([4, 3]),
    "y": np.array([0, 1, 1, -1]),
    "edges": np.array([[0, 0, 1], [1, 2, 2]]),
    "train_mask": np.array([True, False, False, False]),
    "val_mask": np.array([False, True, False, False]),
    "test_mask": np.array([False, False, True, False]),
}


def written(folder: Path, **changes: Any) -> Path:
    np.savez_compressed(folder / "graph.npz", **{**SMALL, **changes})
    return folder / "graph.npz"


def test_a_graph_by_hand(tmp_path: Path) -> None:
    graph = read_graph(written(tmp_path))
    assert graph.x.tolist() == [[0.5, 0, 0.5], [-0.5, 0.5, 0], [0, 0, 1], [0, 0, 0]]
    assert graph.edges.tolist() == [[0, 0, 1], [1, 2, 2]]
    assert graph.y.tolist() == [0, 1, 1, -1]
    assert graph.classes == 2
    assert {name: np.flatnonzero(mask).tolist() for name, mask in graph.masks.items()} == {
        "train": [0],
        "val": [1],
        "test": [2],
    }
    kinds = (graph.x.dtype, graph.edges.dtype, graph.y.dtype, graph.masks["val"].dtype)
    assert kinds == (np.float32, np.int64, np.int64, np.bool_)
    assert all(a.flags.writeable for a in (graph.x, graph.edges, graph.y, *graph.masks.values())), "torch shares them"


def test_columns_before_rows_and_no_edges(tmp_path: Path) -> None:
    graph = read_graph(written(tmp_path, edges=np.asfortranarray(SMALL["edges"])))
    assert graph.edges.tolist() == [[0, 0, 1], [1, 2, 2]]
    assert read_graph(written(tmp_path, edges=np.zeros((2, 0), np.int64))).edges.shape == (2, 0)


def test_cora() -> None:
    if "KDCACHE_DATA" not in os.environ or not (path := Path(os.environ["KDCACHE_DATA"]) / "cora/cora.npz").is_file():
        pytest.skip("KDCACHE_DATA holds no cora/cora.npz")
    graph = read_graph(path)
    assert graph.x.shape == (2708, 1433)
    assert graph.edges.shape == (2, 5278)
    assert np.bincount(graph.y).tolist() == [351, 217, 418, 818, 426, 298, 180]
    assert [int(graph.masks[name].sum()) for name in ("train", "val", "test")] == [140, 500, 1000]
    np.testing.assert_allclose(graph.x.sum(1), 1, rtol=1e-5)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"y": np.array([0.0] * 4)}, r"y is float64\[4\], where integers in 1"),
        ({"y": np.zeros((4, 1), np.int64)}, r"y is int64\[4, 1\]"),
        ({"y": np.array([{}] * 4, dtype=object)}, r"y is object\[4\]"),
        ({"y": np.zeros(0, np.int64)}, "classes 0, 1"),
        ({"y": np.array([0, 1, 1, -2])}, "classes 0, 1"),
        ({"y": np.array([0, 1, 1])}, r"x_shape is \[4, 3\], y is of 3 nodes"),
        ({"x_shape": np.array([4, 3, 1])}, "x_shape is"),
        ({"x_shape": np.array([4, 1 << 40])}, "features take"),
        ({"x_indices": np.array([0, 2, 1, 0, 3])}, "outside 0 ... 2"),
        ({"x_indices": np.array([0, 2, 1, 0, -1])}, "outside 0 ... 2"),
        ({"x_indices": np.array([2, 2, 1, 0, 2])}, "the same feature twice"),
        ({"x_data": np.ones(4, np.float32)}, "x_data has 4 values and x_indices 5"),
        ({"x_data": np.array([1, 1, np.nan, 1, 1])}, "NaN, infinity or a number beyond float32"),
        ({"x_indptr": np.array([0, 4, 2, 5, 5])}, "x_indptr must rise"),
        ({"x_indptr": np.array([0, 2, 4, 5])}, "x_indptr must rise"),
        ({"x_indptr": np.array([0, 2, 4, 5, 6])}, "x_indptr must rise"),
        ({"edges": np.zeros((3, 1), np.int64)}, r"edges is \[3, 1\]"),
        ({"edges": np.array([[0], [4]])}, "outside 0 ... 3"),
        ({"edges": np.array([[1], [0]])}, "u < v"),
        ({"edges": np.array([[1], [1]])}, "without loops"),
        ({"edges": np.array([[0, 0], [1, 1]])}, "an edge twice"),
        ({"val_mask": np.array([True])}, "val_mask has 1 values for 4"),
        ({"val_mask": np.array([1, 0, 0, 0])}, "val_mask is int64"),
        ({"val_mask": SMALL["train_mask"]}, "in two of"),
        ({"val_mask": np.array([False, False, False, True])}, "val_mask takes nodes that have no class"),
    ],
)
def test_a_graph_that_is_wrong(changes: dict[str, Any], said: str, tmp_path: Path) -> None:
    path = written(tmp_path, **changes)
    with pytest.raises(SourceError, match=rf"graph\.npz: .*{said}"):
        read_graph(path)


def test_files_that_are_no_graph(tmp_path: Path) -> None:
    whole = written(tmp_path).read_bytes()
    for number, data in enumerate([b"", b"text", whole[:-30], whole[:200], whole[:60] + b"\xff\xff" + whole[62:]]):
        (tmp_path / f"bad{number}").write_bytes(data)
        with pytest.raises(SourceError, match=rf"bad{number}: not an npz file, or damaged"):
            read_graph(tmp_path / f"bad{number}")
    np.savez(tmp_path / "few.npz", y=np.zeros(3, np.int64))
    with pytest.raises(SourceError, match="no array 'x_data'"):
        read_graph(tmp_path / "few.npz")
    for absent, said in ((tmp_path / "absent", "no such file"), (tmp_path, "is a folder")):
        with pytest.raises(SourceError, match=said):
            read_graph(absent)


def test_a_header_that_promises_more_than_there_is(tmp_path: Path) -> None:
    for shape, said in (((9,), "72 bytes, and holds 32"), ((1 << 60,), "bytes, and holds 0"), ((3,), "and holds 25")):
        header = io.BytesIO()
        np.lib.format.write_array_header_1_0(header, {"descr": "<i8", "fortran_order": False, "shape": shape})
        with zipfile.ZipFile(written(tmp_path)) as whole, zipfile.ZipFile(tmp_path / "lie.npz", "w") as lie:
            for name in whole.namelist():
                lie.writestr(name, header.getvalue() + bytes(32) if name == "y.npy" else whole.read(name))
        with pytest.raises(SourceError, match=said):
            read_graph(tmp_path / "lie.npz")
