"""Graph networks for node classification: GCN (Kipf and Welling 2017) and GAT (Velickovic et al. 2018).

A sample is a node, named by its number; the graph itself, features and edges, belongs to the network, which reads it
from its file when it is built. It is kept in buffers that no weights file holds. Every forward pass runs over the whole
graph (transductive) and gives the rows of the nodes asked for. The layers are torch-geometric's; edges are taken in
both directions, with a loop at each node, and GCN's are weighted by 1 / sqrt(degree(u) degree(v)), loops counted
(equation 2).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import dropout as drop
from torch.nn.functional import elu, relu

from kdcache.errors import MissingData, MissingExtra, UsageError
from kdcache.recipe_file import data_root
from kdcache.zoo.arguments import share, whole_number
from kdcache.zoo.graph_file import Graph, read_graph

__all__ = ["GraphNetwork", "gat", "gcn", "graph_path"]

Activation = Callable[[Tensor], Tensor]


class GraphNetwork(nn.Module):
    """Node numbers [B] or [B, 1], of any number type → logits [B, C].

    Tap `hidden`: [B, D], what the last layer is given of these nodes, before dropout.
    """

    x: Tensor
    filled: Tensor
    edges: Tensor
    weights: Tensor

    def __init__(self, graph: Graph, layers: list[nn.Module], weighted: bool, dropout: float, act: Activation) -> None:
        super().__init__()
        self.layers, self.hidden = nn.ModuleList(layers), nn.Identity()
        self.weighted, self.dropout, self.act = weighted, dropout, act
        edges, weights = _message_edges(graph)
        # as_tensor, unlike from_numpy, follows the device that a network is built on.
        buffers = {"x": graph.x, "filled": np.flatnonzero(graph.x), "edges": edges, "weights": weights}
        for name, value in buffers.items():
            self.register_buffer(name, torch.as_tensor(value), persistent=False)

    def forward(self, node: Tensor) -> Tensor:
        node = node.reshape(len(node)).long()
        x = self.x
        for number, layer in enumerate(self.layers):
            if number == len(self.layers) - 1:
                self._rows(x, node)
            x = drop(x, self.dropout, self.training) if number else self._dropped_features()
            x = layer(x, self.edges, self.weights) if self.weighted else layer(x, self.edges)
            x = self.act(x) if number < len(self.layers) - 1 else x
        return x[node]

    def _dropped_features(self) -> Tensor:
        """drop(x); only for features that are not zero a random number is drawn, or that would take most of a step."""
        if not self.training or not self.dropout:
            return self.x
        flat = self.x.view(-1)
        kept = drop(flat[self.filled], self.dropout)
        return torch.zeros_like(flat).index_copy_(0, self.filled, kept).view_as(self.x)

    def _rows(self, x: Tensor, node: Tensor) -> Tensor:
        try:
            rows: Tensor = self.hidden(x[node])
        except IndexError as error:
            raise UsageError(
                f"a node outside 0 ... {len(x) - 1} was asked for: the store is of another graph than the network's"
            ) from error
        return rows


def gcn(
    input_shape: tuple[int, ...],
    num_classes: int,
    *,
    graph: str,
    hidden: int = 16,
    layers: int = 2,
    dropout: float = 0.5,
) -> GraphNetwork:
    """A graph convolutional network; `graph` is a dataset's name (cora) under the data root, or an npz file's path.

    The defaults are the paper's for Cora (section 5.2): 23,063 parameters.
    """
    convolution = _library("gcn").GCNConv
    given = _checked("zoo:gcn", input_shape, num_classes, graph)
    width, depth = whole_number("zoo:gcn", "hidden", hidden), whole_number("zoo:gcn", "layers", layers)
    sizes = [given.x.shape[1], *[width] * (depth - 1), num_classes]
    built = [
        convolution(before, after, normalize=False, add_self_loops=False) for before, after in itertools.pairwise(sizes)
    ]
    return GraphNetwork(given, built, True, share("zoo:gcn", "dropout", dropout), relu)


def gat(
    input_shape: tuple[int, ...],
    num_classes: int,
    *,
    graph: str,
    hidden: int = 8,
    layers: int = 2,
    heads: int = 8,
    dropout: float = 0.6,
) -> GraphNetwork:
    """A graph attention network of `heads` heads of `hidden` channels, side by side, and one head in the last layer.

    `dropout` is of each layer's inputs and of the attention. The defaults are the paper's for Cora (section 3.3):
    92,373 parameters. `graph` is as for gcn.
    """
    convolution = _library("gat").GATConv
    given = _checked("zoo:gat", input_shape, num_classes, graph)
    width, depth = whole_number("zoo:gat", "hidden", hidden), whole_number("zoo:gat", "layers", layers)
    wide = width * whole_number("zoo:gat", "heads", heads)
    rate = share("zoo:gat", "dropout", dropout)
    sizes = [given.x.shape[1], *[wide] * (depth - 1)]
    built = [convolution(before, width, heads, dropout=rate, add_self_loops=False) for before in sizes[:-1]]
    built.append(convolution(sizes[-1], num_classes, 1, dropout=rate, add_self_loops=False))
    return GraphNetwork(given, built, False, rate, elu)


def graph_path(graph: str) -> Path:
    """The file of a graph: NAME/NAME.npz under the data root for a plain name, else the path itself."""
    return data_root() / graph / f"{graph}.npz" if _is_name(graph) else Path(graph).expanduser()


def _is_name(graph: str) -> bool:
    return not ("/" in graph or graph.endswith(".npz"))


def _library(name: str) -> Any:
    try:
        import torch_geometric.nn  # type: ignore[import-untyped, import-not-found]
    except ImportError as error:
        raise MissingExtra("torch-geometric", "graph", f"the model zoo:{name}") from error
    return torch_geometric.nn


def _checked(network: str, input_shape: tuple[int, ...], outputs: int, graph: str) -> Graph:
    if tuple(input_shape) not in ((), (1,)):
        raise UsageError(
            f"{network} takes the number of a node, shape [] or [1]; this input has shape {list(input_shape)}: "
            'give inputs = ["node"], or zoo:mlp for the nodes\' features'
        )
    if not isinstance(graph, str) or not graph or "\0" in graph:
        raise UsageError(f"{network}: graph = {graph!r} must be the name of a dataset or the path of an .npz file")
    path = graph_path(graph)
    if _is_name(graph) and not path.is_file():
        raise MissingData(
            f"{network}: graph = {graph!r}: there is no {path}; set KDCACHE_DATA to the folder that holds {graph}/, or "
            "give the path of an .npz file"
        )
    found = read_graph(path)
    if found.classes != outputs:
        raise UsageError(f"{network}: the graph {graph} has {found.classes} classes, the data has {outputs}")
    return found


def _message_edges(graph: Graph) -> tuple[np.ndarray[Any, np.dtype[np.int64]], np.ndarray[Any, np.dtype[np.float32]]]:
    """int64 [2, 2E + N] of every edge in both directions and every loop, and GCN's weight of each."""
    loops = np.arange(len(graph.y))
    edges = np.concatenate([graph.edges, graph.edges[::-1], np.stack([loops, loops])], axis=1)
    degree = np.bincount(edges[1], minlength=len(loops))
    return edges, (1 / np.sqrt(degree[edges[0]] * degree[edges[1]])).astype(np.float32)
