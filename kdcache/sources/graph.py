"""The nodes of one graph, for transductive node classification.

`input` float32 [F], the node's features with their magnitudes summing to 1; `node` int64 [], its number in the graph,
by which a network that holds the graph finds it; `label` int64 [], -1 where it is hidden. The edges are not in the
rows: a network that needs them opens the same file. The fingerprint covers them.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from kdcache.errors import SourceError, UsageError
from kdcache.fingerprint import sha256
from kdcache.sources.source import ArraySource
from kdcache.sources.subset import Subset

__all__ = ["open_graph"]

_SPLITS = ("train", "val", "test")


def open_graph(path: Path, split: str, *, name: str, class_names: tuple[str, ...] = ()) -> Subset:
    """The nodes of an .npz as `kdcache.zoo.graph_file.read_graph` reads it; a node's number is its id.

    `split` "train" has all nodes, and the labels of `train_mask` alone: the network sees every node's features, and
    no other label is in the store. "val" and "test" have the nodes of their masks with their labels. Raises
    SourceError, UsageError.
    """
    from kdcache.zoo.graph_file import read_graph  # its package loads torch, which a source does without

    if split not in _SPLITS:
        raise UsageError(f"{name}: has no split {split!r}; a graph has {', '.join(_SPLITS)}")
    graph = read_graph(path)
    if class_names and graph.classes > len(class_names):
        raise SourceError(f"{path}: has {graph.classes} classes, {name} has {len(class_names)}; it is another graph")
    mask = graph.masks[split]
    if not mask.any():
        raise SourceError(f"{path}: its {split}_mask takes no node")
    nodes = np.arange(len(graph.y), dtype=np.int64)
    whole = ArraySource(
        name,
        graph.x,
        np.where(mask, graph.y, -1),
        classes=len(class_names) or graph.classes,
        class_names=class_names,
        more={"node": nodes},
    )
    edges = sha256([np.ascontiguousarray(graph.edges, "<i8").data])
    return Subset(whole, nodes if split == "train" else nodes[mask], {"split": split, "edges": edges})
