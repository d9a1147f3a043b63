"""A student from a store against the same student with the teacher in its loop: the same losses, step by step."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from online_loop import batches_of, online
from safetensors.torch import load_file
from torch import Tensor, nn

from kdcache.config import FieldConfig, ObjectiveConfig, Recipe, SourceConfig, StoreConfig, TeacherConfig, TrainConfig
from kdcache.objectives import Adapter, ce, hint, kd
from kdcache.objectives.rkd import rkd_distance
from kdcache.objectives.sp import sp
from kdcache.student import fit, read_metrics
from kdcache.teacher import dump

ROWS, BATCH, EPOCHS, SEED, T = 680, 64, 8, 3, 3.0
STEPS = EPOCHS * -(-ROWS // BATCH)
SOURCE = SourceConfig(kind="digits", rows=ROWS)
STORE = StoreConfig(unit_rows=256, block_rows=64)
TRAIN = TrainConfig(epochs=EPOCHS, batch_size=BATCH, lr=2e-3)
KD = [ObjectiveConfig(name="kd", weight=0.9, temperature=T), ObjectiveConfig(name="ce", weight=0.1)]
HINT = [*KD, ObjectiveConfig(name="hint", weight=0.5, field="features.map", tap="layers.1")]
RELATIONS = [
    *KD,
    ObjectiveConfig(name="rkd_distance", weight=25.0, field="features.map", tap="layers.1"),
    ObjectiveConfig(name="sp", weight=3.0, field="features.map", tap="layers.1"),
]
MLP = ("zoo:mlp", {"hidden": [24]})
CNN = ("zoo:cnn", {"channels": [4, 8], "hidden": 12})
adam = functools.partial(torch.optim.Adam, lr=TRAIN.lr, fused=True)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A convolutional teacher, trained on the digits' labels."""
    folder = tmp_path_factory.mktemp("teacher")
    dump(Recipe(source=SOURCE, store=STORE), folder / "inputs")
    args = {"channels": [16, 24], "hidden": 32}
    train = TrainConfig(epochs=20, batch_size=64, lr=3e-3)
    labels = [ObjectiveConfig(name="ce")]
    fit("zoo:cnn", args, [folder / "inputs"], folder / "run", objective=labels, train=train, seed=0, identity={})
    loss = [row["loss"] for row in read_metrics(folder / "run") if row["split"] == "train"][-1]
    assert loss < 0.2  # it has learnt something to teach
    return folder / "run/model.safetensors"


def recipe_of(weights: Path, batch_size: int) -> Recipe:
    teacher = TeacherConfig(
        model="zoo:cnn",
        args={"channels": [16, 24], "hidden": 32},
        weights=weights,
        batch_size=batch_size,
        taps={"features.map": "layers.1"},
    )
    exact = FieldConfig(codec="dense", dtype="float32")
    return Recipe(source=SOURCE, store=STORE, teacher=teacher, fields={"logits": exact, "features.map": exact})


def offline(
    store: Path, out: Path, student: tuple[str, dict[str, Any]], objective: list[ObjectiveConfig]
) -> tuple[list[float], dict[str, Tensor]]:
    """Every step's loss, as the fit itself writes it down, and the student's weights."""
    fit(*student, [store], out, objective=objective, train=TRAIN, seed=SEED, identity={}, evaluate_every=1)
    losses = [row["loss"] for row in read_metrics(out) if row["split"] == "train"]
    return losses, load_file(out / "model.safetensors")


def ours(student: Mapping[str, Tensor], teacher: Mapping[str, Tensor], label: Tensor, layers: nn.ModuleList) -> Tensor:
    """The library's own losses, on what the teacher has just said."""
    total = 0.9 * kd(student["logits"], teacher["logits"], temperature=T) + 0.1 * ce(student["logits"], label)
    for adapter in layers:
        total = total + 0.5 * hint(adapter(student["map"]), teacher["features.map"])
    return total


def related(
    student: Mapping[str, Tensor], teacher: Mapping[str, Tensor], label: Tensor, layers: nn.ModuleList
) -> Tensor:
    """And those that compare the rows of a batch."""
    pair = student["map"], teacher["features.map"]
    return ours(student, teacher, label, layers) + 25 * rkd_distance(*pair) + 3 * sp(*pair)


def plain(student: Mapping[str, Tensor], teacher: Mapping[str, Tensor], label: Tensor, layers: nn.ModuleList) -> Tensor:
    """As it stands in everybody's training script."""
    soft = F.kl_div(
        F.log_softmax(student["logits"] / T, dim=1), F.softmax(teacher["logits"] / T, dim=1), reduction="batchmean"
    )
    return 0.9 * T * T * soft + 0.1 * F.cross_entropy(student["logits"], label)


def largest_difference(one: list[float], other: list[float]) -> float:
    """Relative, of any step."""
    assert len(one) == len(other) == STEPS
    return max(abs(a - b) / b for a, b in zip(one, other, strict=True))


def adapter() -> nn.ModuleList:
    return nn.ModuleList([Adapter((8, 4, 4), (24, 4, 4))])


@pytest.mark.parametrize("kind", ["kd", "hint", "relations"])
@pytest.mark.parametrize("batch_size", [BATCH, 100])
def test_losses_of_the_teacher_in_the_loop(kind: str, batch_size: int, weights: Path, tmp_path: Path) -> None:
    """Within 1e-6 at every step, and for kd and hint bit for bit where we ran it; the weights follow.

    The dump runs the teacher on the rows of its own batches, of the same size or another: a matrix product may round a
    row otherwise in another company.
    """
    recipe = recipe_of(weights, batch_size)
    dump(recipe, tmp_path / "store")
    student, objective, loss = {
        "kd": (MLP, KD, ours),
        "hint": (CNN, HINT, ours),
        "relations": (CNN, RELATIONS, related),
    }[kind]
    losses, trained = offline(tmp_path / "store", tmp_path / "run", student, objective)
    batches = batches_of(tmp_path / "store", TRAIN, SEED, EPOCHS)
    taps = {} if kind == "kd" else {"map": "layers.1"}
    beside = adapter if kind == "hint" else nn.ModuleList
    live, state = online(recipe, batches, student, adam, loss, SEED, taps=taps, beside=beside)
    assert largest_difference(losses, live) <= 1e-6
    assert live[-1] < 0.8 * live[0]
    for name, tensor in state.items():
        torch.testing.assert_close(trained[name], tensor, rtol=1e-5, atol=1e-6)


def test_losses_of_a_plain_training_script(weights: Path, tmp_path: Path) -> None:
    """Torch's own kl_div and cross_entropy round otherwise at every step, and Adam carries it on: within 1e-5."""
    recipe = recipe_of(weights, BATCH)
    dump(recipe, tmp_path / "store")
    losses, _ = offline(tmp_path / "store", tmp_path / "run", MLP, KD)
    live, _ = online(recipe, batches_of(tmp_path / "store", TRAIN, SEED, EPOCHS), MLP, adam, plain, SEED)
    assert largest_difference(losses, live) <= 1e-5


def test_another_order_has_other_losses(weights: Path, tmp_path: Path) -> None:
    """What the tolerance above is worth: the same student on the same rows in the order of another seed."""
    recipe = recipe_of(weights, BATCH)
    dump(recipe, tmp_path / "store")
    losses, _ = offline(tmp_path / "store", tmp_path / "run", MLP, KD)
    live, _ = online(recipe, batches_of(tmp_path / "store", TRAIN, SEED + 1, EPOCHS), MLP, adam, ours, SEED)
    assert largest_difference(losses, live) > 1e-2
