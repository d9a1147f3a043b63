"""Graphs with features and a class per node, from an npz file of plain arrays.

The file holds the features as compressed rows (`x_data`, `x_indices`, `x_indptr`, `x_shape`), the classes `y` [N], the
edges [2, E] and the masks `train_mask`, `val_mask`, `test_mask` [N]. A network over a graph needs the graph itself,
not only the rows that a store holds, so networks and sources read it here. This module needs no torch; its package
does, so a module that must do without imports it inside the function that reads.
"""

from __future__ import annotations

import math
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from kdcache.errors import SourceError

__all__ = ["Graph", "read_graph"]

_MOST = 1 << 30  # bytes of one array, and of the features once they are dense
_MOST_CLASSES = 1 << 31
_ARRAYS: dict[str, tuple[str, int]] = {
    "x_data": ("f", 1),
    "x_indices": ("iu", 1),
    "x_indptr": ("iu", 1),
    "x_shape": ("iu", 1),
    "y": ("iu", 1),
    "edges": ("iu", 2),
    "train_mask": ("b", 1),
    "val_mask": ("b", 1),
    "test_mask": ("b", 1),
}
_KINDS = {"f": "floats", "iu": "integers", "b": "booleans"}


@dataclass(frozen=True)
class Graph:
    """N nodes with F features each and E undirected edges, of which each is there once with u < v.

    `x` float32 [N, F], each row divided by its sum of magnitudes (Kipf and Welling 2017, section 5.2); `edges` int64
    [2, E]; `y` int64 [N], -1 where a node has no class; `masks` bool [N] by "train", "val" and "test", disjoint.
    """

    x: npt.NDArray[np.float32]
    edges: npt.NDArray[np.int64]
    y: npt.NDArray[np.int64]
    masks: dict[str, npt.NDArray[np.bool_]]

    @property
    def classes(self) -> int:
        """The largest class plus one."""
        return int(self.y.max()) + 1


def read_graph(path: Path) -> Graph:
    """The graph of an npz file. Raises SourceError for a file that is absent, damaged or out of bounds."""
    if not path.is_file():
        what = "is a folder or a device, not a file" if path.exists() else "no such file"
        raise SourceError(f"{path}: {what}; a graph is one .npz file")
    try:
        with zipfile.ZipFile(path) as archive:
            arrays = {name: _array(path, archive, name) for name in _ARRAYS}
    except SourceError:
        raise
    except Exception as error:
        # A stranger's file may fail anywhere inside the parsers, in ways that their authors did not foresee.
        raise SourceError(f"{path}: not an npz file, or damaged ({type(error).__name__}: {error})") from error
    y = arrays["y"].astype(np.int64)
    nodes = len(y)
    if not nodes or int(y.min()) < -1 or not 0 <= int(y.max()) < _MOST_CLASSES:
        raise SourceError(
            f"{path}: y must give classes 0, 1, ... below {_MOST_CLASSES} of one or more nodes, -1 where there is none"
        )
    x = _features(path, arrays, nodes)
    masks = {name: arrays[f"{name}_mask"].copy() for name in ("train", "val", "test")}
    for name, mask in masks.items():
        if len(mask) != nodes:
            raise SourceError(f"{path}: {name}_mask has {len(mask)} values for {nodes} nodes")
        if (y[mask] < 0).any():
            raise SourceError(f"{path}: {name}_mask takes nodes that have no class")
    if (np.sum(list(masks.values()), axis=0) > 1).any():
        raise SourceError(f"{path}: a node is in two of train_mask, val_mask and test_mask")
    return Graph(x, _edges(path, arrays["edges"], nodes), y, masks)


def _array(path: Path, archive: zipfile.ZipFile, name: str) -> npt.NDArray[Any]:
    """One member, its header checked against the bytes that follow before any memory is taken for them."""
    kind, dims = _ARRAYS[name]
    try:
        member = archive.getinfo(f"{name}.npy")
    except KeyError:
        raise SourceError(f"{path}: has no array {name!r}; a graph has {', '.join(_ARRAYS)}") from None
    if member.file_size > _MOST:
        raise SourceError(f"{path}: {name} takes {member.file_size} bytes; at most {_MOST} are read")
    with archive.open(member) as file:
        shape, fortran, dtype = _header(file)
        if dtype.kind not in kind or len(shape) != dims:
            raise SourceError(
                f"{path}: {name} is {dtype}{list(shape)}, where {_KINDS[kind]} in {dims} dimension(s) are needed"
            )
        size = math.prod(shape) * dtype.itemsize
        # A byte more than is wanted: reading to the end is also what checks the member's checksum.
        data = file.read(size + 1) if size <= _MOST else b""
    if len(data) != size:
        raise SourceError(f"{path}: {name} says {dtype}{list(shape)}, {size} bytes, and holds {len(data)}")
    return np.frombuffer(data, dtype).reshape(shape, order="F" if fortran else "C")


def _header(file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    version = np.lib.format.read_magic(file)
    if version not in read:
        raise ValueError(f"version {version} of the npy format")
    shape, fortran, dtype = read[version](file, max_header_size=1024)
    return shape, fortran, dtype


def _features(path: Path, arrays: dict[str, npt.NDArray[Any]], nodes: int) -> npt.NDArray[np.float32]:
    values, columns, starts = arrays["x_data"], arrays["x_indices"].astype(np.int64), arrays["x_indptr"]
    shape = [int(side) for side in arrays["x_shape"]]
    if len(shape) != 2 or shape[0] != nodes or shape[1] < 1:
        raise SourceError(f"{path}: x_shape is {shape}, y is of {nodes} nodes; [nodes, features] is needed")
    if nodes * shape[1] * 4 > _MOST:
        raise SourceError(f"{path}: {shape} features take {nodes * shape[1] * 4} bytes; at most {_MOST} are taken")
    starts = starts.astype(np.int64)
    if len(starts) != nodes + 1 or starts[0] or starts[-1] != len(columns) or (np.diff(starts) < 0).any():
        raise SourceError(
            f"{path}: x_indptr must rise from 0 to the {len(columns)} values of x_indices, one start a node and the end"
        )
    if len(values) != len(columns):
        raise SourceError(f"{path}: x_data has {len(values)} values and x_indices {len(columns)}")
    if len(columns) and not 0 <= columns.min() <= columns.max() < shape[1]:
        raise SourceError(f"{path}: x_indices holds a feature outside 0 ... {shape[1] - 1}")
    if not (np.abs(values) <= np.finfo(np.float32).max).all():
        raise SourceError(f"{path}: x_data holds NaN, infinity or a number beyond float32")
    places = np.repeat(np.arange(nodes), np.diff(starts)) * shape[1] + columns
    if len(np.unique(places)) < len(places):
        raise SourceError(f"{path}: x_indices gives a node the same feature twice")
    x = np.zeros((nodes, shape[1]), np.float32)
    x.reshape(-1)[places] = values
    total = np.abs(x).sum(1, keepdims=True, dtype=np.float64)
    np.divide(x, total, out=x, where=total > 0)
    return x


def _edges(path: Path, edges: npt.NDArray[Any], nodes: int) -> npt.NDArray[np.int64]:
    if len(edges) != 2:
        raise SourceError(f"{path}: edges is {list(edges.shape)}; [2, E] is needed")
    first, second = found = edges.astype(np.int64)
    if found.size and not 0 <= found.min() <= found.max() < nodes:
        raise SourceError(f"{path}: edges names a node outside 0 ... {nodes - 1}")
    if (first >= second).any():
        raise SourceError(f"{path}: edges must hold each undirected edge once, as u < v, without loops")
    if len(np.unique(first * nodes + second)) < found.shape[1]:
        raise SourceError(f"{path}: edges holds an edge twice")
    return found
