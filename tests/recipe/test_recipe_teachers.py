"""Several teachers: what they are worth together, and the recipes of ensembles, facts and other people's images."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from command import forked
from recipe_runs import results

from kdcache.models import load_model
from kdcache.recipe.preflight import check_recipe
from kdcache.recipe_file import load_recipe
from kdcache.recipe_students import resolve_students
from kdcache.store import open_store

RECIPES = Path(__file__).parents[2] / "data" / "recipes"
DIGITS = """
name = "three"
metrics = ["accuracy", "nll"]
[source]
kind = "digits"
rows = 300
[eval_source]
kind = "digits"
split = "test"
rows = 100
[store]
unit_rows = 64
block_rows = 16
[teachers.a]
model = "zoo:mlp"
args = { hidden = [12] }
fit = { steps = 40, batch_size = 32, seeds = [1] }
[teachers.b]
model = "zoo:mlp"
args = { hidden = [24] }
fit = { steps = 40, batch_size = 32, seeds = [2] }
[teachers.c]
model = "zoo:mlp"
args = { hidden = [12] }
fit = { steps = 40, batch_size = 32, seeds = [3] }
[student]
model = "zoo:mlp"
args = { hidden = [8] }
[students.one]
store = "b"
[[students.one.objective]]
name = "kd"
[students.each]
[[students.each.objective]]
name = "kd"
[[students.each.objective]]
name = "kd"
field = "logits@2"
[[students.each.objective]]
name = "kd"
field = "logits@3"
[students.mean]
[[students.mean.objective]]
name = "ensemble"
weight = 3.0
[train]
steps = 30
batch_size = 32
"""
TINY = {
    "cross-dataset": ["teacher.source.rows=300", "teacher.fit.epochs=1"],
    "ensemble": [f"teachers.{name}.fit.epochs=1" for name in "abc"],
    "fact-augmentation": ["teacher.fit.epochs=1"],
}
EVERYWHERE = ["source.rows=300", "eval_source.rows=100", "train.epochs=1", "train.seeds=[0]"]


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("three")
    (folder / "three.toml").write_text(DIGITS)
    done = forked(folder / "said", "run", folder / "three.toml", "--out", folder / "out", "--jobs", "2")
    assert done.code == 0, done.err
    return folder / "out", results(folder / "out")


def test_teachers_together_are_the_mean_of_their_probabilities(three: tuple[Path, dict[str, Any]]) -> None:
    out, found = three
    assert list(found["teachers"]) == ["teacher a", "teacher b", "teacher c", "ensemble"]
    with open_store(out / "eval") as reader:
        images, label = (torch.from_numpy(np.array(reader.read_column(name))) for name in ("input", "label"))
    parts = []
    for name in "abc":
        model, info = load_model(out / "teachers" / name / "model.safetensors")
        with torch.no_grad():
            parts.append(model.eval()(info.input_spec.apply(images)).double().softmax(1))
    mean = torch.stack(parts).mean(0)
    ensemble = found["teachers"]["ensemble"]
    assert ensemble["accuracy"] == float((mean.argmax(1) == label).double().mean())
    assert ensemble["nll"] == pytest.approx(float(-mean[torch.arange(100), label].log().mean()), rel=1e-5)
    assert ensemble["parameters"] == sum(found["teachers"][f"teacher {name}"]["parameters"] for name in "abc")
    assert ensemble["model"] == "mean of a, b, c"
    assert "mean of a, b, c" in (out / "report.html").read_text()


def test_students_take_one_or_all_stores_and_share_a_baseline(three: tuple[Path, dict[str, Any]]) -> None:
    _, found = three
    assert list(found["baselines"]) == ["baseline"]
    assert {name: one["store"] for name, one in found["students"].items()} == {
        "one": "b",
        "each": "a + b + c",
        "mean": "a + b + c",
    }


def test_a_term_for_each_teacher_is_the_mean_of_probabilities(three: tuple[Path, dict[str, Any]]) -> None:
    """Their gradients are the same, so the students differ by rounding only."""
    _, found = three
    each, mean = (found["students"][name]["nll"]["mean"] for name in ("each", "mean"))
    assert each == pytest.approx(mean, rel=1e-3)
    assert abs(found["students"]["one"]["nll"]["mean"] - mean) > 1e-3


def _with_data(name: str) -> Path:
    wanted = {"cross-dataset": ("cifar-10", "fashion-mnist"), "ensemble": ("cifar-10",)}.get(name, ("cifar-100",))
    folder = os.environ.get("KDCACHE_DATA", "")
    for one in wanted:
        if not folder or not (Path(folder) / one).is_dir():
            pytest.skip(f"KDCACHE_DATA names no folder with {one}; `kdcache fetch` says what can be fetched")
    return RECIPES / f"{name}.toml"


@pytest.mark.parametrize("name", TINY)
def test_the_recipe_passes_its_checks(name: str) -> None:
    recipe = load_recipe(_with_data(name))
    facts = check_recipe(lambda *_: None, recipe, resolve_students(recipe))
    assert facts["classes"]
    assert facts["labelled"] == (name != "cross-dataset")
    assert recipe.train.seeds == (0, 1, 2)


@pytest.mark.slow
@pytest.mark.parametrize("name", TINY)
def test_the_recipe_runs(tmp_path: Path, name: str) -> None:
    changes = [word for one in (*EVERYWHERE, *TINY[name]) for word in ("--set", one)]
    done = forked(tmp_path / "said", "run", _with_data(name), "--out", tmp_path / "out", "--jobs", "2", *changes)
    assert done.code == 0, done.err
    found = results(tmp_path / "out")
    assert all(0 <= one["accuracy"]["mean"] <= 1 for one in found["students"].values())
    assert all("gain" in one for one in found["students"].values() if one["accuracy"]["mean"])
    if name == "cross-dataset":
        # The same steps on the labels of other images.
        assert {one["steps"] for one in (found["baseline"], *found["students"].values())} == {5}
        with open_store(tmp_path / "out" / "store") as reader:
            assert "label" not in reader.fields
    if name == "fact-augmentation":
        assert found["metrics"] == ["accuracy", "accuracy.coarse", "withheld_accuracy"]
        assert {"baseline", "baseline-concat-kd", "baseline-add-kd"} <= set(found["baselines"])
        untold = found["students"]["kd"]
        assert untold["withheld_accuracy"] == untold["accuracy"]
    if name == "ensemble":
        assert list(found["teachers"]) == ["teacher a", "teacher b", "teacher c", "ensemble"]
        assert list(found["baselines"]) == ["baseline"]
