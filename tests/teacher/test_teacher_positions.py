"""Logits at each of a row's positions, as of detectors and segmenters: every codec takes each position as a row."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from kdcache.codecs import CODECS, SampledLogits, flat
from kdcache.codecs.fidelity import row_errors
from kdcache.config import Recipe
from kdcache.loader import StreamingLoader
from kdcache.models import InputSpec, WeightsInfo, build_model, load_model, save_weights
from kdcache.sources import open_source
from kdcache.store import describe, open_store, read_plan
from kdcache.teacher import dump
from kdcache.teacher.frozen import FrozenTeacher
from kdcache.teacher.positions import pilot_positions, position_keys

IMAGES, SIDE, NAMES = 8, 16, "abcdefg"
TEACHER = {"model": "zoo:segmenter", "args": {"widths": [4, 8], "stride": 2}}
SPEC = InputSpec((128.0,) * 3, (64.0,) * 3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten noisy images with a box each, of seven classes; two are for testing."""
    root = tmp_path_factory.mktemp("boxes")
    (root / "Annotations").mkdir()
    (root / "JPEGImages").mkdir()
    noise = np.random.default_rng(0)
    for number in range(IMAGES + 2):
        pixels = noise.integers(0, 256, (SIDE, SIDE, 3), np.uint8)
        Image.fromarray(pixels).save(root / "JPEGImages" / f"{number}.png")
        box = "<xmin>3</xmin><ymin>3</ymin><xmax>12</xmax><ymax>12</ymax>"
        (root / "Annotations" / f"{number}.xml").write_text(
            f"<annotation><object><name>{NAMES[number % 7]}</name><bndbox>{box}</bndbox></object></annotation>"
        )
    return root


@pytest.fixture(scope="module")
def weights(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    source = open_source(recipe(folder).source)
    torch.manual_seed(0)
    network = build_model(TEACHER["model"], TEACHER["args"], input=source.arrays["input"], outputs=8)
    with torch.no_grad():
        for parameter in network.head.parameters():  # type: ignore[union-attr]
            parameter.mul_(8)  # an untrained network says much the same everywhere
    path = tmp_path_factory.mktemp("teacher") / "model.safetensors"
    info = WeightsInfo(
        TEACHER["model"], TEACHER["args"], source.arrays["input"], 8, InputSpec((128.0,) * 3, (64.0,) * 3)
    )
    save_weights(path, network, info)
    return path


def recipe(folder: Path, batch: int = 4, **field: Any) -> Recipe:
    source = {"kind": "voc", "path": str(folder), "size": SIDE, "mask": True, "mask_size": SIDE // 2}
    fields = {"logits": field} if field else {}
    return Recipe.model_validate(
        {"source": source, "teacher": {**TEACHER, "batch_size": batch}, "fields": fields,
         "store": {"unit_rows": 4, "block_rows": 2}}
    )  # fmt: skip


FIELDS = [
    {"codec": "dense", "dtype": "float32"},
    {"codec": "quant", "bits": 8},
    {"codec": "quant", "bits": 4},
    {"codec": "topk", "k": 4},
    {"codec": "lowrank", "bytes": 6},
    {"codec": "sampled", "draws": 256},
    {"codec": "threshold", "k": 4},
]


@pytest.mark.parametrize("field", FIELDS, ids=lambda field: "-".join(map(str, field.values())))
def test_every_codec_keeps_every_position(folder: Path, weights: Path, tmp_path: Path, field: dict[str, Any]) -> None:
    given = recipe(folder, **field)
    dump(given, tmp_path / "store", weights=weights)
    plan = read_plan(tmp_path / "store")
    assert plan is not None
    assert next(one for one in plan.fields if one.name == "logits").array.shape == (64, 8)
    source = open_source(given.source)
    teacher = FrozenTeacher(load_model(weights)[0], SPEC, given.teacher, 8)  # type: ignore[arg-type]
    rows = 0
    for batch in StreamingLoader(tmp_path / "store", 5, shuffle=False, fields=["logits"]):
        ids = batch["id"].numpy()  # type: ignore[union-attr]
        said = teacher(torch.from_numpy(source.read(ids)["input"]))["logits"].flatten(0, 1)
        kept = flat(batch["logits"])
        assert len(kept) == 64 * len(ids)
        if isinstance(kept, SampledLogits):
            errors = row_errors(said, kept, 1.0)  # |p^ - p|^2, about 1 / draws at most
            assert errors.mean() < 0.05
        else:
            errors = row_errors(said, kept, 2.0)
            assert errors.mean() < (0.02 if field["codec"] != "dense" else 1e-6)
        rows += len(ids)
    assert rows == IMAGES
    fidelity = describe(tmp_path / "store")["facts"]["fidelity"]["logits"]
    assert fidelity["rows"] == 4 * 64, "the whole first unit, a position a row"


@pytest.mark.parametrize("field", FIELDS[-2:], ids=lambda field: field["codec"])
def test_draws_are_of_a_position_whatever_the_batch(
    folder: Path, weights: Path, tmp_path: Path, field: dict[str, Any]
) -> None:
    teacher = FrozenTeacher(load_model(weights)[0], SPEC, recipe(folder).teacher, 8)  # type: ignore[arg-type]
    for batch in (1, 4):
        given = recipe(folder, batch, **field)
        dump(given, tmp_path / f"{batch}", weights=weights)
        with open_store(tmp_path / f"{batch}") as reader:
            stored = reader.fields["logits"]
            ids = reader.read_column("id")
            images = open_source(given.source).read(ids)["input"]
            said = torch.cat([teacher(torch.from_numpy(one[None]))["logits"][0] for one in images])
            keys = position_keys(torch.from_numpy(ids), 64)
            expected = CODECS[stored.codec].encode(said, stored.configuration, {}, keys)
            for suffix, values in expected.items():
                found = reader.read_column(stored.column(suffix))
                same = np.isclose(found.reshape(values.shape), values.numpy()).mean()
                assert same > 0.99, "rounding in another batch may move a draw or two"


def test_a_budget_is_measured_a_position_a_row(folder: Path, weights: Path, tmp_path: Path) -> None:
    given = recipe(folder, budget={"max_bytes": 8})
    result = dump(given, tmp_path / "store", weights=weights)
    with open_store(tmp_path / "store") as reader:
        assert reader.fields["logits"].array.shape == (64, 8)
        assert reader.fields["logits"].width <= 8 * 64
    measured = result.budget["logits"]["measured"]
    assert measured["rows_fitted"] + measured["rows_held_out"] == 64 * IMAGES


def test_a_pilot_takes_scored_positions(folder: Path) -> None:
    source = open_source(recipe(folder).source)
    ids = source.ids()[:3]
    places, keys = pilot_positions(source, ids, 64, 5)
    assert len(places) == len(keys) == 15
    assert (keys // 64).tolist() == np.repeat(ids, 5).tolist()
    assert (keys % 64).tolist() == (places % 64).tolist()
    again, _ = pilot_positions(source, ids[1:], 64, 5)
    assert (again + 64).tolist() == places[5:].tolist(), "which ones depends on nothing but the sample"
