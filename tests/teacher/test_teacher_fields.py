"""Which codec may store which of a teacher's fields."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from kdcache.config import FieldConfig, Recipe, SourceConfig, TeacherConfig
from kdcache.errors import UsageError
from kdcache.models import InputSpec, build_model
from kdcache.sources import open_source
from kdcache.store import StoredField
from kdcache.teacher.fields import teacher_fields
from kdcache.teacher.frozen import FrozenTeacher

IMAGES = {"kind": "digits", "rows": 8}
TEXT = {"kind": "text", "files": (Path(__file__),), "tokenizer": "bytes", "length": 16, "rows": 8}
CNN = {"model": "zoo:cnn", "taps": {"features.seen": "layers.0"}}
GPT = {"model": "zoo:gpt", "args": {"width": 8, "layers": 1, "heads": 2}, "taps": {"features.seen": "blocks.0"}}


def fields(source: dict[str, Any], teacher: dict[str, Any], name: str, **keys: Any) -> dict[str, StoredField]:
    config = TeacherConfig(**teacher)
    recipe = Recipe(source=SourceConfig(**source), teacher=config, fields={name: FieldConfig(**keys)})
    opened = open_source(recipe.source)
    assert opened.classes
    model = build_model(config.model, config.args, input=opened.arrays["input"], outputs=opened.classes)
    frozen = FrozenTeacher(model, InputSpec(), config, opened.classes)
    return {field.name: field for field in teacher_fields(recipe, opened, frozen, {})}


@pytest.mark.parametrize(("source", "teacher"), [(IMAGES, {**CNN, "pool": "avg"}), (TEXT, GPT)], ids=["[D]", "[L, D]"])
def test_vectors_of_features_are_not_rounded_as_logits_are(source: dict[str, Any], teacher: dict[str, Any]) -> None:
    shape = fields(source, teacher, "features.seen")["features.seen"].array.shape
    assert len(shape) in (1, 2)
    with pytest.raises(UsageError, match=r"fields\.features\.seen: quant with bits = 4 .*take bits = 8, or the dense"):
        fields(source, teacher, "features.seen", codec="quant", bits=4)
    for bits in (None, 8):
        found = fields(source, teacher, "features.seen", codec="quant", bits=bits)["features.seen"]
        assert (found.codec, found.configuration["bits"]) == ("quant", 8)


@pytest.mark.parametrize(("source", "teacher"), [(IMAGES, CNN), (TEXT, GPT)], ids=["images", "text"])
def test_logits_and_maps_have_four_bits_too(source: dict[str, Any], teacher: dict[str, Any]) -> None:
    assert fields(source, teacher, "logits", codec="quant", bits=4)["logits"].configuration["bits"] == 4
    if source is IMAGES:
        found = fields(source, teacher, "features.seen", codec="quant", bits=4)["features.seen"]
        assert (len(found.array.shape), found.configuration["bits"]) == (3, 4)
