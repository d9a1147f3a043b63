"""GCN and GAT against the library's own layers, on a graph by hand; weights files without the graph in them."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.functional import elu, relu

from kdcache.arrays import Array
from kdcache.errors import CheckpointError, MissingData, MissingExtra, SourceError, UsageError
from kdcache.models import InputSpec, WeightsInfo, load_model, load_weights, save_weights
from kdcache.taps import tap_outputs
from kdcache.zoo.graph import GraphNetwork, graph_path
from kdcache.zoo.graph_file import read_graph
from kdcache.zoo.reference import build_model

pytest.importorskip("torch_geometric")
NODE = Array("int64", ())
N, F, C = 12, 6, 3


@pytest.fixture
def graph(tmp_path: Path) -> Path:
    draw = np.random.default_rng(0)
    x = (draw.random((N, F)) < 0.4) * draw.random((N, F))
    rows, columns = np.nonzero(x)
    first, second = np.nonzero(np.triu(draw.random((N, N)) < 0.3, 1))
    masks = {f"{name}_mask": np.arange(N) % 3 == n for n, name in enumerate(("train", "val", "test"))}
    starts = np.searchsorted(rows, np.arange(N + 1))
    np.savez(
        tmp_path / "g.npz", x_data=x[rows, columns].astype(np.float32), x_indices=columns, x_indptr=starts,
        x_shape=np.array([N, F]), y=np.arange(N) % C, edges=np.stack([first, second]), **masks,
    )  # fmt: skip
    return tmp_path / "g.npz"


def network(name: str, graph: Path, **args: object) -> GraphNetwork:
    torch.manual_seed(0)
    model = build_model(f"zoo:{name}", {"graph": str(graph), **args}, input=NODE, outputs=C)
    assert isinstance(model, GraphNetwork)
    return model


@pytest.mark.parametrize("name", ["gcn", "gat"])
def test_logits_are_the_librarys_own_over_the_whole_graph(name: str, graph: Path) -> None:
    from torch_geometric.nn import GATConv, GCNConv

    model = network(name, graph, hidden=5, layers=3).eval()
    read = read_graph(graph)
    both = torch.from_numpy(np.concatenate([read.edges, read.edges[::-1]], axis=1))
    x = torch.from_numpy(read.x)
    for number, layer in enumerate(model.layers):
        last = number == 2
        if name == "gcn":
            own = GCNConv(x.shape[1], C if last else 5)
        else:
            own = GATConv(x.shape[1], C if last else 5, heads=1 if last else 8)
        own.load_state_dict(layer.state_dict())
        hidden, x = x, own(x, both)
        x = x if last else (relu if name == "gcn" else elu)(x)
    node = torch.tensor([3, 0, 11, 3])
    with tap_outputs(model, {"hidden": "hidden"}) as taps:
        logits = model(node.float())
    torch.testing.assert_close(logits, x[node])
    torch.testing.assert_close(taps["hidden"], hidden[node])
    assert torch.equal(model(node[:, None]), logits), "[B, 1] is the same"


@pytest.mark.parametrize(
    ("name", "count"), [("gcn", F * 16 + 16 + 16 * C + C), ("gat", 64 * F + 3 * 64 + 64 * C + 3 * C)]
)
def test_parameters_gradients_and_dropout(name: str, count: int, graph: Path) -> None:
    model = network(name, graph)
    assert sum(p.numel() for p in model.parameters()) == count
    node = torch.arange(N)
    assert not torch.equal(model(node), model(node)), "dropout"
    model(node).square().sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in model.parameters())


def test_dropout_of_the_features_keeps_their_mean(graph: Path) -> None:
    model = network("gcn", graph, dropout=0.25)
    draws = torch.stack([model._dropped_features() for _ in range(2000)])
    torch.testing.assert_close(draws.mean(0), model.x, atol=0.05, rtol=0.05)
    assert set((draws[:, model.x > 0] / model.x[model.x > 0]).unique().mul(3).round().tolist()) == {0.0, 4.0}


@pytest.mark.parametrize("name", ["gcn", "gat"])
def test_weights_come_back_and_hold_no_graph(name: str, graph: Path, tmp_path: Path) -> None:
    model, path = network(name, graph), tmp_path / "w.safetensors"
    save_weights(path, model, WeightsInfo(f"zoo:{name}", {"graph": str(graph)}, NODE, C, InputSpec()))
    assert not {"x", "edges", "weights", "filled"} & load_weights(path)[0].keys()
    again, _ = load_model(path)
    node = torch.arange(N)
    assert torch.equal(again.eval()(node), model.eval()(node))
    graph.unlink()
    with pytest.raises(SourceError, match="no such file"):
        load_model(path)


def test_weights_of_another_width_are_refused_before_anything_is_copied(graph: Path, tmp_path: Path) -> None:
    model, path = network("gcn", graph, hidden=4), tmp_path / "w.safetensors"
    save_weights(path, model, WeightsInfo("zoo:gcn", {"graph": str(graph), "hidden": 5}, NODE, C))
    with pytest.raises(CheckpointError, match="not those of this GraphNetwork"):
        load_model(path)


def test_where_a_named_graph_is_looked_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("KDCACHE_DATA", str(tmp_path))
    with pytest.raises(MissingData, match=r"there is no .*cora/cora\.npz; set KDCACHE_DATA"):
        build_model("zoo:gcn", {"graph": "cora"}, input=NODE, outputs=7)
    monkeypatch.setenv("KDCACHE_DATA", "/data")
    assert graph_path("cora") == Path("/data/cora/cora.npz")
    assert graph_path("cora.npz") == Path("cora.npz")
    assert graph_path("./cora") == Path("cora")


def test_what_cannot_be_built(graph: Path) -> None:
    for args, said in (
        ({"graph": 3}, "graph = 3 must be the name"),
        ({}, "graph"),
        ({"graph": str(graph), "hidden": 0}, "hidden = 0"),
        ({"graph": str(graph), "dropout": 1.0}, "dropout = 1.0"),
    ):
        with pytest.raises(UsageError, match=said):
            build_model("zoo:gcn", args, input=NODE, outputs=C)
    with pytest.raises(UsageError, match="has 3 classes, the data has 4"):
        build_model("zoo:gat", {"graph": str(graph)}, input=NODE, outputs=4)
    with pytest.raises(UsageError, match=r"takes the number of a node.*\[6\].*zoo:mlp"):
        build_model("zoo:gcn", {"graph": str(graph)}, input=Array("float32", (F,)), outputs=C)
    with pytest.raises(UsageError, match=r"outside 0 \.\.\. 11.*another graph"):
        network("gcn", graph)(torch.tensor([N]))


def test_without_the_library(graph: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch_geometric.nn", None)
    with pytest.raises(MissingExtra, match=r"zoo:gcn needs torch-geometric, .*kdcache\[graph\]"):
        network("gcn", graph)
