"""The drift watch: a codec that was fitted on other rows than it is used on is told of, or ends the dump."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from teacher_recipes import find_modules, write_recipe
from torch import Tensor, nn

from kdcache.errors import DataError
from kdcache.recipe_file import load_recipe
from kdcache.store import open_store
from kdcache.store.manifest import read_record
from kdcache.teacher import dump

CLASSES = 30


class Sorted:
    """Samples in two parts: logits along a few directions in the first `plain` rows, along others after them."""

    classes = CLASSES

    def __init__(self, plain: int = 128, other: float = 1.0) -> None:
        draw = np.random.default_rng(5)
        self.inputs = np.zeros((256, CLASSES), dtype=np.float32)
        self.inputs[:, :6] = draw.standard_normal((256, 6))
        late = slice(plain, None)
        self.inputs[late] += np.float32(other) * draw.standard_normal((256 - plain, CLASSES)).astype(np.float32)

    def __len__(self) -> int:
        return len(self.inputs)

    def read(self, ids: NDArray[np.int64]) -> dict[str, NDArray[Any]]:
        return {"input": self.inputs[ids], "label": ids % CLASSES}


class Through(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale


def through(input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
    return Through()


def recipe_of(folder: Path, order: str, **source: float) -> Any:
    find_modules()
    keys = ", ".join(f"{key} = {value}" for key, value in source.items())
    text = f'[source]\nkind = "python"\nfactory = "test_teacher_drift:Sorted"\nargs = {{ {keys} }}\n'
    fields = '[fields.logits]\ncodec = "lowrank"\nbytes = 12\n'
    teacher = 'model = "test_teacher_drift:through"'
    return load_recipe(write_recipe(folder, source=text, teacher=teacher, fields=fields, store=f'order = "{order}"'))


@pytest.fixture(autouse=True)
def pilot_of_a_unit(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a small source can have rows that the pilot did not see."""
    monkeypatch.setattr("kdcache.teacher.planning.PILOT_ROWS", 64)


def test_a_sorted_source_is_refused_and_what_was_committed_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = recipe_of(tmp_path, "source", other=2.0)
    with pytest.raises(DataError) as error:
        dump(recipe, tmp_path / "store")
    for said in ("unit 2: the lowrank codec's error on logits is", "on unit 0", 'order = "shuffled"', "another --out"):
        assert said in str(error.value)
    assert [read_record(tmp_path / "store", unit) is not None for unit in range(4)] == [True, True, False, False]
    monkeypatch.setattr("kdcache.teacher.planning.PILOT_ROWS", 256)
    dump(recipe_of(tmp_path, "shuffled", other=2.0), tmp_path / "shuffled")
    with open_store(tmp_path / "shuffled") as store:
        assert "drift" not in store.manifest.facts


def test_units_written_before_unit_0_are_judged_before_the_store_is_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "2")
    monkeypatch.setenv("WORLD_SIZE", "4")
    with pytest.raises(DataError, match="unit 2: the lowrank codec's error"):
        dump(recipe_of(tmp_path, "source", other=2.0), tmp_path / "store")
    assert not (tmp_path / "store" / "manifest.json").exists()


def test_a_milder_change_is_told_of(tmp_path: Path) -> None:
    dump(recipe_of(tmp_path, "source", other=0.08), tmp_path / "store")
    with open_store(tmp_path / "store") as store:
        found = store.manifest.facts["drift"]["logits"]
        errors = [record.facts["error"]["logits"]["mean"] for record in store.manifest.units]
    assert found["units"] == [2, 3]
    assert found["error"] == errors[0]
    assert found["ratio"] == pytest.approx(max(errors) / errors[0])
    assert found["ratio"] > 3


def test_a_pilot_that_was_too_small_shows_as_well(tmp_path: Path) -> None:
    # Unit 0 is what the basis was fitted on; 64 rows of 30 classes are not enough for the others.
    dump(recipe_of(tmp_path, "shuffled", other=2.0), tmp_path / "store")
    with open_store(tmp_path / "store") as store:
        assert store.manifest.facts["drift"]["logits"]["units"] == [1, 2, 3]
