"""The installed recipes, run whole on real data: what README says of them must come out again. About half an hour."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from command import call

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3000)]


def results(name: str, tmp_path: Path) -> dict[str, Any]:
    done = call("run", name, "--out", tmp_path / name, timeout=2900)
    assert done.code == 0, done.err
    assert (tmp_path / name / "report.html").stat().st_size > 10_000
    found: dict[str, Any] = json.loads((tmp_path / name / "results.json").read_text())
    return found


def sds(found: dict[str, Any], student: str) -> float:
    """The gain over the same network alone, in units of the larger standard deviation."""
    alone, distilled = found["baseline"]["accuracy"], found["students"][student]["accuracy"]
    return float((distilled["mean"] - alone["mean"]) / max(alone["sd"], distilled["sd"]))


def test_digits(tmp_path: Path) -> None:
    found = results("digits", tmp_path)
    assert found["teacher"]["accuracy"] > 0.88
    assert sds(found, "student") > 3


@pytest.mark.usefixtures("data_root")
def test_fashion_mnist_hinton_is_above_the_published_run(tmp_path: Path) -> None:
    found = results("fashion-mnist-hinton", tmp_path)
    assert found["teacher"]["accuracy"] > 0.8682
    assert min(found["baseline"]["accuracy"]["seeds"]) > 0.8302
    assert min(found["students"]["student"]["accuracy"]["seeds"]) > 0.8365
    assert len(found["seeds"]) == 5


@pytest.mark.usefixtures("data_root")
def test_fashion_mnist_few_labels_gains_more_than_three_deviations(tmp_path: Path) -> None:
    found = results("fashion-mnist-few-labels", tmp_path)
    assert sds(found, "student") > 3
    assert found["store"]["target_bytes_per_row"] == 18


@pytest.mark.usefixtures("data_root")
def test_cifar10_cnn_has_both_losses(tmp_path: Path) -> None:
    found = results("cifar10-cnn", tmp_path)
    assert set(found["students"]) == {"soft-ce", "kd"}
    assert found["teacher"]["accuracy"] > found["baseline"]["accuracy"]["mean"]


@pytest.mark.usefixtures("data_root")
def test_alpha_temperature_runs_the_teacher_once_for_twelve_students(tmp_path: Path) -> None:
    found = results("alpha-temperature", tmp_path)
    assert len(found["students"]) == 12
    assert [len(values) for values in found["grid"]["axes"].values()] == [3, 4]
    assert all(sds(found, name) > 3 for name in found["students"])
    assert len(list((tmp_path / "alpha-temperature" / "stages").glob("store*.json"))) == 1


@pytest.mark.usefixtures("data_root")
def test_language_model_compares_codecs_at_equal_bytes(tmp_path: Path) -> None:
    found = results("language-model", tmp_path)
    assert found["metric"] == "perplexity"
    assert found["teacher"]["perplexity"] < found["baseline"]["perplexity"]["mean"]
    width = {name: student["target_bytes"] for name, student in found["students"].items()}
    assert width == {"dense": 4096, "topk": 37, "topk-alone": 37, "sampled": 37, "threshold": 37}
    assert all(len(student["perplexity"]["seeds"]) == 3 for student in found["students"].values())
