"""What a recipe gets wrong in its losses, metrics, views and baseline is refused before anything is trained."""

from __future__ import annotations

from pathlib import Path

import pytest

from kdcache.errors import KdcacheError, UsageError
from kdcache.recipe.preflight import check_recipe
from kdcache.recipe_file import load_recipe
from kdcache.recipe_students import resolve_students

RECIPE = """
METRICS
[source]
kind = "digits"
rows = 64
[eval_source]
kind = "digits"
split = "test"
rows = 40
[store]
unit_rows = 64
block_rows = 16
[teacher]
model = "zoo:resnet8"
fit = { steps = 2, batch_size = 16 }
taps = { map = "layer2", vector = "pooled" }
TEACHER
[student]
model = "zoo:resnet8"
STUDENT
[[objective]]
OBJECTIVE
[train]
steps = 2
batch_size = 16
"""
MAP, VECTOR = 'tap = "layer2"\nfield = "map"\n', 'tap = "pooled"\nfield = "vector"\n'


def check(
    folder: Path, objective: str = 'name = "kd"', *, metrics: str = "", teacher: str = "", student: str = ""
) -> None:
    text = RECIPE.replace("METRICS", metrics).replace("TEACHER", teacher).replace("STUDENT", student)
    path = folder / "recipe.toml"
    path.write_text(text.replace("OBJECTIVE", objective))
    recipe = load_recipe(path)
    check_recipe(lambda *_: None, recipe, resolve_students(recipe))


@pytest.mark.parametrize(
    "objective",
    [
        'name = "dist"',
        'name = "dkd"',
        f'name = "cc"\n{VECTOR}',
        f'name = "crd"\nnegatives = 16\n{VECTOR}',
        f'name = "attention"\n{MAP}',
        f'name = "nst"\n{MAP}',
        f'name = "margin"\n{MAP}',
        f'name = "vid"\n{MAP}',
        f'name = "adversarial_feature"\n{MAP}',
        'name = "irg"\ntap = ["layer1", "layer2"]\noutput = "logits"\nfield = ["map", "map", "logits"]',
        'name = "review"\ntap = ["layer2", "pooled"]\nfield = ["map", "vector"]',
        'name = "ensemble"\nfield = ["logits", "logits"]',
    ],
)
def test_what_can_be_learnt_passes(objective: str, tmp_path: Path) -> None:
    check(tmp_path, objective)


@pytest.mark.parametrize(
    "codec", ['"topk"\nk = 3', '"quant"\nbits = 8', '"lowrank"\nbytes = 4', '"sampled"\ndraws = 20']
)
def test_targets_come_through_their_codec(codec: str, tmp_path: Path) -> None:
    check(tmp_path, teacher=f"[fields.logits]\ncodec = {codec}")


@pytest.mark.parametrize(
    ("objective", "said"),
    [
        ('name = "kd"\ntemperature = 1e30', "gives nan for random numbers"),
        ('name = "skew_kl"\nalpha = 1.0', "alpha = 1.0"),
        ('name = "dist"\nbeta = -1.0', "beta = -1.0"),
        ('name = "dkd"\nalpha = -1.0', "alpha = -1.0"),
        ('name = "dkd"\nbeta = -8.0', "beta = -8.0"),
        (f'name = "cc"\norder = 0\n{VECTOR}', "order = 0"),
        (f'name = "cc"\ngamma = -1.0\n{VECTOR}', "gamma = -1.0"),
        (f'name = "attention"\npower = 0.5\n{MAP}', "power = 0.5"),
        (f'name = "attention"\n{VECTOR}', "pass maps"),
        (f'name = "nst"\n{VECTOR}', "pass maps"),
        ('name = "irg"\ntap = ["layer2", "pooled"]\nfield = ["map", "map"]', "end both lists with the logits"),
        ('name = "irg"\ntap = "layer2"\noutput = "logits"\nfield = ["map", "logits"]\nw_edge = -1.0', "none below 0"),
        ('name = "ce"\nfield = "id"', "labels run from"),
        ('name = "mse"\nfield = "map"', "need as many values"),
        ('name = "huber"\nfield = "logits"\ndelta = 0.0', "delta = 0.0"),
        ('name = "ensemble"\nfield = ["logits", "logits"]\nweights = [1.0]', "give one for each"),
    ],
)
def test_a_loss_is_refused_before_any_network_is_trained(objective: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="student student: ") as refused:
        check(tmp_path, objective)
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)


def test_the_baseline_has_no_teacher(tmp_path: Path) -> None:
    teacher = '[[teacher.objective]]\nname = "ce"\n[[baseline]]\nname = "kd"'
    with pytest.raises(UsageError, match="alone, as the baseline: objective kd: the store has no field 'logits'"):
        check(tmp_path, teacher=teacher)


def test_the_teachers_own_objective(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no 'boxes' in the outputs of zoo:resnet8"):
        check(tmp_path, teacher='[[teacher.objective]]\nname = "ce"\noutput = "boxes"')


@pytest.mark.parametrize(
    ("metrics", "said"),
    [
        ('metrics = ["mae"]', "mae reads 'target'"),
        ('metrics = ["accuracy"]\nmetric_options = { epsilon = 1.0 }', "takes the option epsilon"),
        ('metrics = ["pgd_accuracy"]\nmetric_options = { steps = "a" }', "metric option steps"),
    ],
)
def test_metrics(metrics: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=said):
        check(tmp_path, metrics=metrics)


def test_weights_that_do_not_fit(tmp_path: Path) -> None:
    (tmp_path / "damaged.safetensors").write_bytes(b"hello" * 10)
    for name in ("damaged", "absent"):
        with pytest.raises(KdcacheError, match=f"{name}.safetensors") as refused:
            check(tmp_path, student=f'weights = "{name}.safetensors"')
        assert refused.value.exit_code == 65


@pytest.mark.parametrize(
    ("views", "student", "objective", "said"),
    [
        ("mixup = {}", "", 'name = "dkd"', "views are mixed of two images"),
        ("flip = 0.5", "view = 3", 'name = "kd"', "take 1 to 1"),
        ("", "view = 1", 'name = "kd"', "no views"),
    ],
)
def test_views(views: str, student: str, objective: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=said):
        check(tmp_path, objective, teacher=f"[views]\n{views}" if views else "", student=student)
