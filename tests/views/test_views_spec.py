"""What a recipe or a plan may say of views."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError
from view_examples import ALONE, EVERYTHING, spec_of

from kdcache.arrays import Array
from kdcache.config.views import AttackConfig, ViewsConfig
from kdcache.errors import StoreDamaged, UsageError
from kdcache.views import ViewsSpec, views_json

IMAGE = Array("uint8", (3, 9, 7))


@pytest.mark.parametrize("name", ALONE)
def test_a_plan_says_what_a_recipe_said(name: str) -> None:
    assert ViewsSpec.from_json(views_json(ALONE[name]), IMAGE, "here") == spec_of(ALONE[name])


def test_an_attack_names_its_teacher() -> None:
    config = ViewsConfig(attack=AttackConfig())
    table = views_json(config, "ab" * 32)
    assert table["attack"]["teacher"] == "ab" * 32
    assert ViewsSpec.from_json(table, IMAGE, "here") == spec_of(config)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({}, "no operation"),
        ({"count": 100, "flip": 0.5}, "count"),
        ({"flip": 1.5}, "flip"),
        ({"crop": {"scale": [0.5, 0.2]}}, "must not be above"),
        ({"crop": {"scale": [0.0, 0.2]}}, "scale"),
        ({"jitter": {}}, "at least one"),
        ({"jitter": {"hue": 0.6}}, "hue"),
        ({"mixup": {"alpha": 5.0}}, "alpha"),
        ({"mixup": {"probability": 0.7}, "cutmix": {"probability": 0.7}}, "sum to 1"),
        ({"attack": {"epsilon": 128}}, "epsilon"),
        ({"rotate": 3}, "rotate"),
    ],
)
def test_a_recipe_that_cannot_work_is_told(given: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        ViewsConfig.model_validate(given)


@pytest.mark.parametrize(
    ("image", "config", "said"),
    [
        (Array("float32", (3, 9, 7)), ALONE["flip"], "float32"),
        (Array("uint8", (9,)), ALONE["flip"], "images"),
        (Array("uint8", (1, 9, 7)), EVERYTHING, "3 channels"),
        (Array("uint8", (1, 40000, 7)), ALONE["flip"], "32767"),
    ],
)
def test_inputs_that_have_no_such_views_are_told(image: Array, config: ViewsConfig, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        ViewsSpec(config, image)


@pytest.mark.parametrize(
    "change",
    [
        {"count": True}, {"count": 0}, {"count": "2"}, {"seed": 0.0}, {"flip": 1}, {"flip": [0.5]}, {"rotate": 1},
        {"crop": {"scale": [0.25, 1.0]}}, {"attack": 3}, {"attack": None}, {"erase": {"value": 300}}, {"plain": 0},
    ],
)  # fmt: skip
def test_a_plan_that_kdcache_never_writes_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(StoreDamaged, match="views"):
        ViewsSpec.from_json({**views_json(ALONE["flip"]), **change}, IMAGE, "here")
