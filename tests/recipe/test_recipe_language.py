"""A recipe of language models: several stores of one teacher, perplexity, and what is refused before any work."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from command import Done, forked, one_error_line
from recipe_runs import results, stamps

from kdcache.errors import UsageError
from kdcache.recipe_file import load_recipe
from kdcache.recipe_students import resolve_students, store_recipes
from kdcache.store import describe, verify

README = Path(__file__).parents[2] / "README.md"
RECIPE = """
name = "words"
[source]
kind = "text"
files = ["README.md"]
tokenizer = "bytes"
length = 16
rows = 96
[eval_source]
kind = "text"
files = ["README.md"]
tokenizer = "bytes"
length = 16
rows = 40
seed = 1
[store]
unit_rows = 32
block_rows = 8
[teacher]
model = "zoo:gpt"
args = { width = 16, layers = 1, heads = 2 }
fit = { steps = 12, batch_size = 16, lr = 1e-2 }
[stores.dense.fields.logits]
codec = "dense"
dtype = "float16"
[stores.few.fields.logits]
codec = "topk"
k = 4
[student]
model = "zoo:gpt"
args = { width = 8, layers = 1, heads = 2 }
[[objective]]
name = "kd"
[students.dense]
store = "dense"
[students.few]
store = "few"
[train]
steps = 6
batch_size = 16
lr = 1e-2
seeds = [0, 1]
"""


def write(folder: Path, *changes: tuple[str, str]) -> Path:
    text = RECIPE.replace('"README.md"', json.dumps(str(README)))
    for old, new in changes:
        assert old in text, old
        text = text.replace(old, new)
    path = folder / "words.toml"
    path.write_text(text)
    return path


def kd(folder: Path, *words: object) -> Done:
    return forked(folder / "said", "run", *words, "--jobs", "2")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Done]:
    folder = tmp_path_factory.mktemp("words")
    recipe = write(folder)
    return recipe, folder / "out", kd(folder, recipe, "--out", folder / "out")


def test_one_teacher_fills_several_stores(finished: tuple[Path, Path, Done]) -> None:
    _, out, done = finished
    assert done.code == 0, done.err
    assert sorted(path.name for path in (out / "stores").iterdir()) == ["dense", "few"]
    dense, few = (verify(out / "stores" / name, deep=True) for name in ("dense", "few"))
    assert dense["strange_files"] == few["strange_files"] == []
    plans = [json.loads((out / "stores" / name / "plan.json").read_text()) for name in ("dense", "few")]
    assert plans[0]["teacher"] == plans[1]["teacher"]
    assert not (out / "store").exists()


def test_results_are_in_perplexity_and_bytes_a_token(finished: tuple[Path, Path, Done]) -> None:
    _, out, done = finished
    found = results(out)
    assert found["metric"] == "perplexity"
    assert found["teacher"]["perplexity"] == pytest.approx(math.exp(found["teacher"]["loss"]))
    fitted = json.loads((out / "teacher" / "result.json").read_text())["eval"]
    assert found["teacher"]["loss"] == pytest.approx(fitted["loss"], rel=1e-5), "judged as it was evaluated"
    assert found["teacher"]["accuracy"] == pytest.approx(fitted["accuracy"])
    alone = found["baseline"]["perplexity"]["seeds"]
    for name, student in found["students"].items():
        for seed in (0, 1):
            one = json.loads((out / f"students/{name}/seed-{seed}/result.json").read_text())
            assert one["eval"]["perplexity"] == student["perplexity"]["seeds"][seed]
            assert one["eval"]["agreement"] == student["agreement"]["seeds"][seed]
            assert one["stores"] == [found["stores"][name]["digest"]]
            gain = alone[seed] - student["perplexity"]["seeds"][seed]
            assert student["gain"]["seeds"][seed] == pytest.approx(gain)
        width = describe(out / "stores" / name)["fields"]["logits"]["bytes_per_row"]
        assert student["target_bytes"] == width / 15
    assert found["students"]["dense"]["target_bytes"] == 2 * 257
    for words in ("Perplexity", "Perplexity saved", "Agreement, %", "Bytes a target", "514"):
        assert words in done.out
    page = (out / "report.html").read_text()
    for words in ("perplexity, lower is better", "dense: logits", "few: logits"):
        assert words in page


def test_a_second_call_does_nothing(finished: tuple[Path, Path, Done], tmp_path: Path) -> None:
    recipe, out, _ = finished
    before = stamps(out)
    done = kd(tmp_path, recipe, "--out", out)
    assert done.code == 0, done.err
    assert stamps(out) == before


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (('name = "kd"', 'name = "kd"\ntemperature = 0.5'), "student few: objective kd: temperature = 0.5 is below 1"),
        (("k = 4", "k = 400"), "stores.few: fields.logits"),
        (('codec = "topk"\nk = 4', 'codec = "sampled"\ndraws = 9\ntemperature = 2'), "serve that one alone"),
        (('model = "zoo:gpt"\nargs = { width = 8', 'model = "zoo:mlp"\nargs = { hidden = [8'), "is no language model"),
        (("rows = 40", "rows = 40\nmasked = 0.2"), "eval_source: its labels are int32[16]"),
        (('tokenizer = "bytes"\nlength = 16\nrows = 40', "vocabulary = 270\nlength = 16\nrows = 40"),
         "an id does not mean the same in both"),
        (('[train]\nsteps = 6', '[train]\naugment = ["flip"]\nsteps = 6'), "augment"),
        (("width = 8, layers = 1", "width = 8, layers = 1, causal = false"), "is masked, and a row of 16 tokens"),
    ],
)  # fmt: skip
def test_what_cannot_work_is_refused_before_any_work(change: tuple[str, str], said: str, tmp_path: Path) -> None:
    from kdcache.recipe.preflight import check_recipe

    text = change
    if "zoo:mlp" in change[1]:
        text = (change[0] + ", layers = 1, heads = 2 }", change[1] + "] }")
    recipe = load_recipe(write(tmp_path, text))
    with pytest.raises(UsageError) as refused:
        check_recipe(lambda *_: None, recipe, resolve_students(recipe))
    assert said in str(refused.value)


def test_rows_that_the_loader_cannot_hold_are_found_before_any_work(tmp_path: Path) -> None:
    from kdcache.recipe.preflight import check_recipe

    small = ("[train]\nsteps = 6", "[train]\nmemory_mib = 1\nsteps = 6")
    recipe = load_recipe(write(tmp_path, ("length = 16", "length = 64"), small))
    with pytest.raises(UsageError) as refused:
        check_recipe(lambda *_: None, recipe, resolve_students(recipe))
    row = 8 + 4 * 64 + 2 * 64 + 4 * 63 + 2 * 63 * 257  # id, input, segment, label, logits
    assert f"student dense: train.memory_mib = 1 holds 3 blocks of 8 rows x {row} bytes" in str(refused.value)
    assert "12 lanes need 12: raise train.memory_mib to 4, or lower" in str(refused.value)
    for cure in ("memory_mib = 4", "memory_mib = 1\nlanes = 2"):
        recipe = load_recipe(
            write(tmp_path, ("length = 16", "length = 64"), (small[0], small[1].replace("memory_mib = 1", cure)))
        )
        assert check_recipe(lambda *_: None, recipe, resolve_students(recipe))["positions"] == 63


def test_students_name_one_of_the_stores(tmp_path: Path) -> None:
    path = write(tmp_path, ('[students.few]\nstore = "few"', '[students.few]\nstore = "fev"'))
    one_error_line(kd(tmp_path, path, "--out", tmp_path / "out"), 64, "store = 'fev' is none of the recipe's; did you")
    recipe = load_recipe(write(tmp_path))
    assert {name: one.fields["logits"].codec for name, one in store_recipes(recipe).items()} == {
        "dense": "dense",
        "few": "topk",
    }
    assert all(not one.stores for one in store_recipes(recipe).values())
