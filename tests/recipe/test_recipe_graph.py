"""The recipe of graphs: teachers that see the edges, students that do not, and no label beyond the split's."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from command import start
from recipe_runs import results

from kdcache.config import Recipe
from kdcache.errors import UsageError
from kdcache.models import load_model
from kdcache.recipe.preflight import check_recipe
from kdcache.recipe_file import load_recipe
from kdcache.recipe_students import resolve_students
from kdcache.store import open_store
from kdcache.zoo.graph_file import read_graph

pytest.importorskip("torch_geometric")

RECIPE = Path(__file__).parents[2] / "data" / "recipes" / "graph.toml"
TINY = ("train.epochs=1", "train.seeds=[0]", "teachers.gcn.fit.steps=2", "teachers.gat.fit.steps=1")


def recipe(data_root: Path, changes: Sequence[str] = ()) -> Recipe:
    if not (data_root / "cora/cora.npz").is_file():
        pytest.skip(f"no cora in {data_root}: `kdcache data get cora`")
    return load_recipe(RECIPE, changes)


def test_it_can_be_run(data_root: Path) -> None:
    given = recipe(data_root)
    students = resolve_students(given)
    assert check_recipe(lambda *_: None, given, students) == {"positions": None, "labelled": True, "classes": True}
    assert {name: student.inputs for name, student in students.items() if student.model == "zoo:mlp"} == {
        name: ("input",) for name in ("mlp", "mlp-gat", "mlp-both")
    }
    assert students["gcn-small"].inputs == ("node",)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ('teachers.gcn.inputs=["input"]', r"stores.gcn: .*takes the number of a node"),
        ('students.gcn-small.inputs=["nodes"]', r"student gcn-small: .*there is no 'nodes'"),
    ],
)
def test_what_does_not_fit_is_refused(data_root: Path, change: str, said: str) -> None:
    given = recipe(data_root, [change])
    with pytest.raises(UsageError, match=said):
        check_recipe(lambda *_: None, given, resolve_students(given))


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_stores_hold_every_node_and_only_the_labels_of_the_split(data_root: Path, tmp_path: Path) -> None:
    recipe(data_root)
    sets = [word for change in TINY for word in ("--set", change)]
    done = start(tmp_path / "said", "run", RECIPE, "--out", tmp_path / "out", "--jobs", "1", *sets).wait(800)
    assert done.code == 0, done.err
    graph = read_graph(data_root / "cora/cora.npz")
    for teacher in ("gcn", "gat"):
        with open_store(tmp_path / "out/stores" / teacher) as store:
            node, label = store.read_column("node"), store.read_column("label")
        assert np.array_equal(np.sort(node), np.arange(len(graph.y)))
        assert np.array_equal(label, np.where(graph.masks["train"], graph.y, -1)[node])
    with open_store(tmp_path / "out/eval") as store:
        assert np.array_equal(np.sort(store.read_column("node")), np.flatnonzero(graph.masks["test"]))
    found = results(tmp_path / "out")
    assert set(found["students"]) == {"mlp", "mlp-gat", "mlp-both", "gcn-small"}
    assert found["students"]["gcn-small"]["baseline"]["parameters"] < found["baseline"]["parameters"]
    _, info = load_model(tmp_path / "out/students/mlp/seed-0/model.safetensors")
    assert (info.input.shape, info.others) == ((graph.x.shape[1],), ()), "features, and neither a node nor its edges"
