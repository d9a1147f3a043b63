"""The recipes of dense networks and of series: one tiny run each, and what its results hold."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from command import forked
from recipe_runs import results

from kdcache.config import Recipe
from kdcache.recipe.preflight import check_recipe
from kdcache.recipe_file import load_recipe
from kdcache.recipe_students import resolve_students

RECIPES = Path(__file__).parents[2] / "data" / "recipes"
SHORT = ("train.seeds=[0]", "train.epochs=1", "teacher.fit.epochs=1", "source.rows=12", "eval_source.rows=6")


def recipe(data_root: Path, name: str, dataset: str) -> Recipe:
    if not (data_root / dataset).is_dir():
        pytest.skip(f"no {dataset} in {data_root}")
    return load_recipe(RECIPES / f"{name}.toml", ())


def ran(data_root: Path, folder: Path, name: str, dataset: str, *changes: str) -> dict[str, Any]:
    recipe(data_root, name, dataset)
    sets = [word for change in changes for word in ("--set", change)]
    done = forked(folder / "said", "run", RECIPES / f"{name}.toml", "--out", folder / "out", "--jobs", "2", *sets)
    assert done.code == 0, done.err
    return results(folder / "out")


@pytest.mark.parametrize(
    ("name", "dataset"), [("detection", "bccd"), ("segmentation", "bccd"), ("time-series-anomaly", "nab")]
)
def test_can_be_run(data_root: Path, name: str, dataset: str) -> None:
    given = recipe(data_root, name, dataset)
    if name == "detection":
        pytest.importorskip("pycocotools")
    students = resolve_students(given)
    found = check_recipe(lambda *_: None, given, students)
    assert found == {"positions": None, "labelled": True, "classes": False}
    assert all(student.train.seeds == (0, 1, 2) for student in students.values())
    assert given.source.seed == 0


@pytest.mark.slow
def test_a_detector_learns_logits_boxes_and_maps_from_one_store(data_root: Path, tmp_path: Path) -> None:
    pytest.importorskip("pycocotools")
    found = ran(data_root, tmp_path, "detection", "bccd", *SHORT)
    fields = found["store"]["fields"]
    places = (96 // 8) * (128 // 8)
    assert fields["logits"]["array"] == f"float32[{places}, 4]"
    assert fields["predicted.boxes"]["array"] == f"float32[{places}, 4]"
    assert fields["features.neck"]["array"] == "float32[48, 12, 16]"
    assert fields["boxes.class"]["array"] == "int64[40]"
    assert (found["metric"], found["higher_is_better"]) == ("map50", True)
    for network in (found["teacher"], found["baseline"], *found["students"].values()):
        assert {"map50", "map50_95"} <= network.keys()
    assert {"kd-t1", "kd-t2", "kd-t4", "foreground", "boxes", "masked", "all"} == found["students"].keys()
    assert found["baseline"]["parameters"] < found["teacher"]["parameters"] / 5


@pytest.mark.slow
def test_the_pixels_of_a_segmenter_are_kept_by_several_codecs(data_root: Path, tmp_path: Path) -> None:
    found = ran(data_root, tmp_path, "segmentation", "bccd", *SHORT)
    places, widths = 48 * 64, {}
    for name, store in found["stores"].items():
        assert store["fields"]["logits"]["array"] == f"float32[{places}, 4]"
        widths[name] = store["fields"]["logits"]["bytes_per_row"] / places
    assert widths == {"dense": 8, "quant8": 8, "quant4": 6, "topk2": 11, "lowrank4": 4}, "as the recipe's heading says"
    assert (found["metric"], found["metrics"][:2]) == ("mean_iou", ["mean_iou", "pixel_accuracy"])
    for name, student in found["students"].items():
        assert 0 <= student["mean_iou"]["mean"] <= 1
        assert student["target_bytes"] == found["stores"][name]["target_bytes_per_row"]


@pytest.mark.slow
def test_forecasts_are_judged_by_windows(data_root: Path, tmp_path: Path) -> None:
    found = ran(data_root, tmp_path, "time-series-anomaly", "nab", *SHORT[:4],
                "teacher.source.stride=64", "eval_source.stride=24", "teacher.args.width=4")  # fmt: skip
    fields = found["store"]["fields"]
    assert fields["logits"]["array"] == fields["target"]["array"] == "float32[24]"
    assert found["metric"] == "window_f1"
    for network in (found["teacher"], found["baseline"], *found["students"].values()):
        assert {"window_f1", "window_precision", "window_recall", "window_threshold", "mae"} <= network.keys()
