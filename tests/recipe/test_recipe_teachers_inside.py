"""The recipes that look into a teacher or compete with it: tokens, hidden layers, a discriminator, raw outputs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from command import forked
from recipe_runs import results

from kdcache.config import Recipe
from kdcache.errors import UsageError
from kdcache.recipe.preflight import check_recipe
from kdcache.recipe_file import load_recipe
from kdcache.recipe_students import resolve_students

RECIPES = Path(__file__).parents[2] / "data" / "recipes"
DATASETS = {
    "adversarial": "fashion-mnist",
    "deit-token": "cifar-10",
    "hidden-layers": "fashion-mnist",
    "regression-logits": "fashion-mnist",
}
TINY = (
    "source.rows=256", "eval_source.rows=64", "train.seeds=[0]", "train.batch_size=32", "teacher.fit.epochs=1",
    "store.unit_rows=128", "store.block_rows=32",
)  # fmt: skip
FEW_LABELS = (*TINY, "source.labelled=64", "train.steps=4")


def recipe(data_root: Path, name: str, *changes: str) -> Recipe:
    if not (data_root / DATASETS[name]).is_dir():
        pytest.skip(f"no {DATASETS[name]} in {data_root}: `kdcache data get {DATASETS[name]}`")
    return load_recipe(RECIPES / f"{name}.toml", changes)


def ran(data_root: Path, folder: Path, name: str, *changes: str) -> dict[str, Any]:
    """results.json of a run whose settings are as small as they go."""
    recipe(data_root, name, *changes)
    words = [word for change in changes for word in ("--set", change)]
    done = forked(folder / "said", "run", RECIPES / f"{name}.toml", "--out", folder / "out", "--jobs", "1", *words)
    assert done.code == 0, done.err
    return results(folder / "out")


@pytest.mark.parametrize("name", DATASETS)
def test_each_can_be_run(data_root: Path, name: str) -> None:
    given = recipe(data_root, name)
    found = check_recipe(lambda *_: None, given, resolve_students(given))
    assert found == {"positions": None, "labelled": True, "classes": True}
    assert given.train.seeds == (0, 1, 2)


def test_attention_is_all_that_collapsed_maps_teach(data_root: Path) -> None:
    given = recipe(data_root, "hidden-layers", "students.hint-fp16.store=collapsed")
    with pytest.raises(UsageError, match=r"student hint-fp16: "):
        check_recipe(lambda *_: None, given, resolve_students(given))


def test_a_token_that_the_network_lacks_is_not_distilled(data_root: Path) -> None:
    given = recipe(data_root, "deit-token", "student.args.distillation_token=false")
    with pytest.raises(
        UsageError, match=r"student token-hard: no 'class' in the outputs of zoo:vit, only \['logits'\]"
    ):
        check_recipe(lambda *_: None, given, resolve_students(given))


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_each_transformer_has_a_baseline_of_its_own(data_root: Path, tmp_path: Path) -> None:
    found = ran(data_root, tmp_path, "deit-token", *TINY, "train.epochs=1")
    students, plain = found["students"], found["baseline"]
    assert set(found["baselines"]) == {"baseline", "baseline-token-hard"}
    own = students["token-hard"]["baseline"]
    assert own == students["token-soft"]["baseline"]
    assert plain["parameters"] == students["class-soft"]["parameters"]
    # a token, its position, and a head of its own
    assert own["parameters"] - plain["parameters"] == 64 + 64 + (64 * 10 + 10)
    assert students["token-hard"]["parameters"] == own["parameters"]
    assert {one["steps"] for one in (*students.values(), plain, own)} == {8}


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_hidden_layers_are_as_wide_as_the_recipe_says(data_root: Path, tmp_path: Path) -> None:
    found = ran(data_root, tmp_path, "hidden-layers", *TINY, "source.labelled=64", "train.epochs=1")
    values, channels = 16 * 14 * 14 + 32 * 7 * 7 + 64 * 3 * 3, 16 + 32 + 64
    widths = {name: one["target_bytes_per_row"] - 20 for name, one in found["stores"].items()}
    assert widths == {
        "fp16": 2 * values,
        "int8": values + 4 * channels,
        "int4": 16 * 98 + 32 * 25 + 64 * 5 + 4 * channels,  # an odd number of codes has half a byte to spare
        "collapsed": 2 * (14 * 14 + 7 * 7 + 3 * 3),
    }
    given = {name: one["target_bytes"] for name, one in found["students"].items()}
    assert given["attention-collapsed"] == widths["collapsed"] + 20
    exact, collapsed = (found["students"][f"attention-{one}"]["loss"]["mean"] for one in ("fp16", "collapsed"))
    assert collapsed == pytest.approx(exact, rel=0.05)  # the same loss but for what fp16 rounds


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_discriminator_stays_out_of_the_student(data_root: Path, tmp_path: Path) -> None:
    found = ran(data_root, tmp_path, "adversarial", *FEW_LABELS)
    assert {one["parameters"] for one in found["students"].values()} == {found["baseline"]["parameters"]}
    for name in ("kd", "kd-non-saturating", "kd-least-squares"):
        assert found["students"][name]["objective"][0]["name"] == "kd"
    losses = {name: one["loss"]["mean"] for name, one in found["students"].items()}
    assert len(set(losses.values())) == len(losses)  # each learnt from something else


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_softened_probabilities_at_a_high_temperature_are_squared_errors(data_root: Path, tmp_path: Path) -> None:
    found = ran(data_root, tmp_path, "regression-logits", *FEW_LABELS, "train.steps=20")
    losses = {name: one["loss"]["mean"] for name, one in found["students"].items()}
    near, far = (abs(losses[name] - losses["mse-centred"]) for name in ("kd-20", "kd-1"))
    assert near < far / 3
