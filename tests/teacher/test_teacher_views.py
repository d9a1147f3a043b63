"""Dumps with views: the teacher sees the replayed images, and the bytes are the same however the dump was made."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from teacher_recipes import CNN, HERE, NUMBERED, ROWS, files_of, write_recipe

from kdcache.codecs import CODECS
from kdcache.config import Recipe
from kdcache.config.views import AttackConfig, CropConfig, EraseConfig, JitterConfig, MixConfig, ViewsConfig
from kdcache.errors import StoreMismatch, UsageError
from kdcache.loader import StreamingLoader
from kdcache.loader.views import verify_views, views_spec
from kdcache.models import load_model
from kdcache.recipe_file import load_recipe
from kdcache.store import open_store, verify
from kdcache.teacher import dump, estimate
from kdcache.views import replay_batch

MIXED = ViewsConfig(
    count=2, plain=True, crop=CropConfig(), flip=0.5, jitter=JitterConfig(contrast=0.5), erase=EraseConfig(),
    mixup=MixConfig(), cutmix=MixConfig(),
)  # fmt: skip
DENSE = '[fields.logits]\ndtype = "float32"\n'
CASES = {
    "flip": (ViewsConfig(count=3, flip=0.5, shift=2), DENSE),
    "mixed": (MIXED, DENSE),
    "lowrank": (MIXED, '[fields.logits]\ncodec = "lowrank"\nbytes = 8\n'),
    "budget": (ViewsConfig(crop=CropConfig()), "[fields.logits.budget]\nmax_kl = 0.01\n"),
    "attack": (ViewsConfig(plain=True, attack=AttackConfig(epsilon=2, steps=4)), DENSE),
    "attack-mixed": (ViewsConfig(flip=0.5, mixup=MixConfig(), attack=AttackConfig(epsilon=2, steps=2)), DENSE),
}


def recipe_of(weights: Path, name: str) -> Recipe:
    views, fields = CASES[name]
    recipe = load_recipe(write_recipe(weights, teacher=CNN, fields=fields, name=f"views-{name}"))
    return recipe.model_copy(update={"views": views})


@pytest.fixture(scope="module")
def stores(weights: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("viewed")
    for name in CASES:
        dump(recipe_of(weights, name), folder / name)
    return {name: folder / name for name in CASES}


@pytest.mark.parametrize("name", CASES)
def test_a_view_holds_what_the_teacher_says_of_its_images(weights: Path, stores: dict[str, Path], name: str) -> None:
    """Batches of 24 rows cut blocks of 16, so partners are often of another batch."""
    model, info = load_model(weights / "cnn.safetensors")
    model.eval()
    with open_store(stores[name]) as store:
        verify(stores[name], deep=True)
        assert verify_views(store) == 13 * CASES[name][0].count
        spec = views_spec([store])
        assert spec is not None
        exact = store.fields["view01.logits"].codec == "dense" and name != "budget"
        for view in [*(["plain"] if CASES[name][0].plain else []), *range(1, CASES[name][0].count + 1)]:
            for batch in StreamingLoader(store, 50, view=view, shuffle=False, fields=["input", "logits"]):
                x = batch["input"] if view == "plain" else replay_batch(batch, spec)
                assert isinstance(x, torch.Tensor)
                with torch.inference_mode():
                    expected = model(info.input_spec.apply(x))
                found = batch["logits"]
                dense = found if isinstance(found, torch.Tensor) else found.dense()  # type: ignore[union-attr]
                p, q = torch.log_softmax(expected, 1), torch.log_softmax(dense, 1)
                assert not exact or float((p - q).abs().max()) < 1e-4
                assert float((p.exp() * (p - q)).sum(1).mean()) < (1e-6 if exact else 0.1)


def test_views_differ_and_facts_are_of_view_1_and_the_plain_images(stores: dict[str, Path]) -> None:
    with open_store(stores["mixed"]) as store:
        views = [store.read_column(f"{view}logits") for view in ("", "view01.", "view02.")]
        assert len({values.tobytes() for values in views}) == 3
        assert set(store.manifest.facts["fidelity"]) == {"logits", "view01.logits"}
        assert set(store.manifest.units[1].facts["error"]) == {"logits", "view01.logits"}
    with open_store(stores["flip"]) as store:
        assert "logits" not in store.fields
        assert set(store.manifest.facts["fidelity"]) == {"view01.logits"}


def test_all_views_have_one_table_fitted_on_view_1(stores: dict[str, Path]) -> None:
    with open_store(stores["lowrank"]) as store:
        assert len(set(store.plan.tables.values())) == 1
        assert set(store.plan.tables) == {"logits", "view01.logits", "view02.logits"}


def test_an_attack_turns_the_teacher_within_its_bounds(stores: dict[str, Path]) -> None:
    with open_store(stores["attack"]) as store:
        delta = store.read_column("view01.delta").astype(int)
        moved = store.read_column("input").astype(int) + delta
        assert np.abs(delta).max() == 2
        assert (moved.min(), moved.max()) >= (0, 0)
        assert moved.min() >= 0
        clean, attacked = (torch.from_numpy(store.read_column(f"{v}logits")) for v in ("", "view01."))
        answer = clean.argmax(1)
        before, after = (torch.log_softmax(x, 1).gather(1, answer[:, None]) for x in (clean, attacked))
        assert float((after < before).float().mean()) > 0.99
        assert store.plan.views is not None
        assert store.plan.teacher is not None
        assert store.plan.views["attack"]["teacher"] == store.plan.teacher["weights"]


@pytest.mark.parametrize("name", CASES)
def test_the_same_dump_twice_gives_the_same_bytes(
    weights: Path, stores: dict[str, Path], tmp_path: Path, name: str
) -> None:
    dump(recipe_of(weights, name), tmp_path / "store")
    assert files_of(tmp_path / "store") == files_of(stores[name])


DUMP = """
import sys, time, torch
from pathlib import Path
sys.path.insert(0, {here!r})
from kdcache.recipe_file import load_recipe
from kdcache.config.views import ViewsConfig
from kdcache.teacher import dump
import kdcache.teacher.unit as unit
true = unit.run_batch
def slow(*given):
    time.sleep({sleep})
    return true(*given)
unit.run_batch = slow
views = ViewsConfig.model_validate_json({views!r})
dump(load_recipe(Path({recipe!r})).model_copy(update={{"views": views}}), Path({out!r}))
"""


def test_killed_and_gone_on_with(weights: Path, stores: dict[str, Path], tmp_path: Path) -> None:
    recipe_of(weights, "attack-mixed")
    views = CASES["attack-mixed"][0].model_dump_json(exclude_none=True)
    given: dict[str, Any] = {"here": str(HERE), "recipe": str(weights / "views-attack-mixed.toml"), "views": views,
                             "out": str(tmp_path / "store")}  # fmt: skip
    running = subprocess.Popen([sys.executable, "-c", DUMP.format(sleep=0.2, **given)])
    end = time.monotonic() + 100
    while len(list(tmp_path.glob("store/units/*.json"))) < 2 and running.poll() is None:
        assert time.monotonic() < end
        time.sleep(0.005)
    running.kill()
    assert running.wait() == -9
    assert not (tmp_path / "store" / "manifest.json").exists()
    both = [subprocess.Popen([sys.executable, "-c", DUMP.format(sleep=0, **given)]) for _ in range(2)]
    assert [process.wait() for process in both] == [0, 0]
    assert files_of(tmp_path / "store") == files_of(stores["attack-mixed"])


def test_another_seed_is_another_plan(weights: Path, stores: dict[str, Path]) -> None:
    other = CASES["flip"][0].model_copy(update={"seed": 8})
    with pytest.raises(StoreMismatch, match=r"views\.seed"):
        dump(recipe_of(weights, "flip").model_copy(update={"views": other}), stores["flip"])


def test_like_a_store_with_views_needs_the_same_views(weights: Path, stores: dict[str, Path], tmp_path: Path) -> None:
    dump(recipe_of(weights, "flip"), tmp_path / "second", like=stores["flip"])
    with open_store(stores["flip"]) as one, open_store(tmp_path / "second") as two:
        assert "logits@2" in next(iter(StreamingLoader([one, two], 8, view="cycle")))
    with pytest.raises(StoreMismatch, match=r"the same \[views\]"):
        dump(recipe_of(weights, "mixed"), tmp_path / "third", like=stores["flip"])


def test_inputs_that_are_no_images_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    teacher = 'model = "teacher_recipes:marked"\nargs = { sleep = 0.0 }'
    recipe = load_recipe(write_recipe(tmp_path, source=NUMBERED, teacher=teacher))
    with pytest.raises(UsageError, match="views are of images"):
        dump(recipe.model_copy(update={"views": ViewsConfig(flip=0.5)}), tmp_path / "store")


def test_an_estimate_counts_the_views(weights: Path) -> None:
    found = estimate(recipe_of(weights, "flip"))
    assert found.plan.rows == ROWS
    assert found.field_bytes["view03.logits"] == 40
    assert CODECS[found.plan.fields[-1].codec]
