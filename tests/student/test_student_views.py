"""Fits on a store with views: what the student sees is what the teacher saw, and nothing that could not be so."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from command import forked, one_error_line
from numpy.typing import NDArray
from student_runs import KD, StopAt, small
from student_stores import digits

from kdcache.arrays import Array
from kdcache.config import ObjectiveConfig
from kdcache.errors import Interrupted, StoreMismatch, UsageError
from kdcache.loader import StreamingLoader
from kdcache.models import build_model
from kdcache.objectives.response import kd
from kdcache.recipe_file import load_recipe
from kdcache.store import StoreWriter, open_store, plain_field
from kdcache.student import evaluate_run, read_metrics
from kdcache.student.data import open_data
from kdcache.student.module import network_outputs
from kdcache.teacher import dump
from kdcache.views import replay_batch

SOFT = [ObjectiveConfig.model_validate({"name": "kd", "temperature": 2.0})]
RECIPE = """
name = "viewed"
[source]
kind = "digits"
rows = 200
[store]
unit_rows = 64
block_rows = 16
[teacher]
model = "zoo:mlp"
args = {{ hidden = [32] }}
weights = "{weights}"
[fields.logits]
dtype = "float32"
[views]
{views}
"""


@pytest.fixture(scope="module")
def stores(digits_store: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Dumped from a teacher that has been fitted: moved images, and mixed ones."""
    folder = tmp_path_factory.mktemp("viewed")
    small(digits_store, folder / "teacher", epochs=2)
    found = {}
    for name, views in {
        "moved": "count = 2\nplain = true\nflip = 0.5\nshift = 1",
        "mixed": "mixup = { alpha = 0.5 }",
    }.items():
        path = folder / f"{name}.toml"
        path.write_text(RECIPE.format(weights=folder / "teacher/model.safetensors", views=views))
        dump(load_recipe(path), folder / name)
        found[name] = folder / name
    return found


def again(
    store: Path,
    path: Path,
    more: Mapping[str, NDArray[Any]] | None = None,
    pixels: dict[str, list[str]] | None = None,
) -> Path:
    """The store, whole, with other fields than it had, or other digests of its images in every unit."""
    with open_store(store) as reader:
        plan, added = reader.plan, dict(more or {})
        new = {name: plain_field(name, Array(values.dtype.name, values.shape[1:])) for name, values in added.items()}
        fields = {**{field.name: field for field in plan.fields}, **new}
        plan = dataclasses.replace(plan, fields=tuple(fields[name] for name in sorted(fields)))
        writer = StoreWriter(path, plan)
        for unit in range(plan.units):
            first, last = plan.unit_range(unit)
            rows = {
                name: np.ascontiguousarray(added[name][first:last])
                if name in added
                else reader.read_column(name, first, last)
                for name in plan.columns
            }
            known = reader.pixels(unit)
            forged = {view: (pixels or {}).get(view, [])[: len(found)] or found for view, found in known.items()}
            writer.write(unit, rows, {}, forged)
        writer.finish()
    return path


def by_hand(store: Path, view: Any) -> float:
    """kd of the network as it is built, against one view or the images as they are."""
    with open_data([store]) as data:
        torch.manual_seed(0)
        network = build_model("zoo:mlp", {"hidden": [32]}, input=data.input, outputs=10)
        loader = StreamingLoader(data.readers, data.rows, view=view, shuffle=False, fields=["input", "logits"])
        batch = next(iter(loader))
        assert data.views is not None
        x = batch["input"] if view == "plain" else replay_batch(batch, data.views)
        with torch.no_grad():
            logits = network_outputs(network, data.input_spec(), ("input",), {"input": x})["logits"]
            found = kd(logits, batch["logits"], temperature=2.0).item()
        loader.close()
    return found


@pytest.mark.parametrize(
    ("view", "shown"),
    [
        (None, [(1,), (2,), (1,)]),
        ("cycle", [(1,), (2,), (1,)]),
        (2, [(2,)]),
        ("plain", [("plain",)]),
        ("all", [(1, 2)]),
    ],
)
def test_each_epoch_sees_its_view(view: Any, shown: list[Any], stores: dict[str, Path], tmp_path: Path) -> None:
    epochs = len(shown)
    small(stores["moved"], tmp_path, epochs=epochs, batch_size=200, lr=1e-12, objective=SOFT, view=view)
    losses = [row["loss"] for row in read_metrics(tmp_path)]
    expected = [np.mean([by_hand(stores["moved"], one) for one in views]) for views in shown]
    assert losses == pytest.approx(expected, rel=1e-5)
    assert len({by_hand(stores["moved"], one) for one in (1, 2, "plain")}) == 3
    assert 0 <= evaluate_run(tmp_path, stores["moved"])["accuracy"] <= 1


@pytest.mark.parametrize("view", ["cycle", "all"])
def test_stopped_in_the_middle_of_an_epoch_it_ends_with_the_same_bytes(
    view: Any, stores: dict[str, Path], tmp_path: Path
) -> None:
    def fitted(out: Path, **more: Any) -> bytes:
        small(stores["moved"], out, epochs=4, batch_size=40, view=view, checkpoint_seconds=0.0, **more)
        return (out / "model.safetensors").read_bytes()

    with pytest.raises(Interrupted, match="after step 8 of 20"):
        fitted(tmp_path / "stopped", progress=StopAt(8))
    assert fitted(tmp_path / "stopped") == fitted(tmp_path / "whole")
    assert read_metrics(tmp_path / "stopped") == read_metrics(tmp_path / "whole")
    last = "resume/step-00000020/optimizer.safetensors"
    assert (tmp_path / "stopped" / last).read_bytes() == (tmp_path / "whole" / last).read_bytes()


def test_another_view_is_another_fit(stores: dict[str, Path], tmp_path: Path) -> None:
    one = small(stores["moved"], tmp_path / "1", steps=2, view=1)
    two = small(stores["moved"], tmp_path / "2", steps=2, view=2)
    assert (one.identity["view"], two.identity["view"]) == (1, 2)
    assert (tmp_path / "1/model.safetensors").read_bytes() != (tmp_path / "2/model.safetensors").read_bytes()


def test_mixed_images_have_no_label_of_one_class(stores: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"objective ce: it reads one label a row, and these views are mixed"):
        small(stores["mixed"], tmp_path / "ce", objective=KD)
    assert small(stores["mixed"], tmp_path / "kd", steps=2, objective=SOFT).steps == 2


@pytest.mark.parametrize("name", ["boxes", "label"])
def test_what_stays_where_it_was_does_not_teach_of_moved_images(
    name: str, stores: dict[str, Path], tmp_path: Path
) -> None:
    """Boxes, and a label for each pixel."""
    places = np.arange(200, dtype=np.float32)[:, None] + np.arange(10, dtype=np.float32)
    pixels = (digits()[0][:200].reshape(200, -1) > 8).astype(np.int64)
    store = again(stores["moved"], tmp_path / "store", {name: {"boxes": places, "label": pixels}[name]})
    terms = {"boxes": [*SOFT, ObjectiveConfig(name="l1", field=("boxes",))], "label": [ObjectiveConfig(name="ce")]}
    with pytest.raises(UsageError, match=rf"these views move what is in the image, and the objective reads {name}"):
        small(store, tmp_path / "run", objective=terms[name])


def test_all_views_at_once_are_not_cut(stores: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"accumulate = 2 would cut across them"):
        small(stores["moved"], tmp_path, view="all", accumulate=2)


@pytest.mark.parametrize("view", [3, "cycle"])
def test_a_view_that_is_not_there_is_refused(
    view: Any, stores: dict[str, Path], digits_store: Path, tmp_path: Path
) -> None:
    store = stores["moved"] if view == 3 else digits_store
    with pytest.raises(UsageError, match=r"take 1 to 2" if view == 3 else "the store has no views"):
        small(store, tmp_path, view=view)


def test_images_that_come_out_otherwise_end_the_fit_before_it_begins(stores: dict[str, Path], tmp_path: Path) -> None:
    forged = again(stores["moved"], tmp_path / "forged", pixels={"view02": ["0" * 32] * 4})
    with pytest.raises(StoreMismatch, match=r"unit 0, block 0, view 2: the images replayed here have xxh3_128"):
        small(forged, tmp_path / "run")
    assert not (tmp_path / "run/resume").exists()
    assert small(forged, tmp_path / "one", view=1, steps=1).steps == 1
    one_error_line(forked(tmp_path / "said", "verify", forged, "--deep"), 65, "view 2", "0" * 32)
    told = forked(tmp_path / "said", "verify", again(stores["moved"], tmp_path / "true"), "--deep", "--json")
    assert told.code == 0, told.err
    assert json.loads(told.out)["replayed_blocks"] == 2 * 13
