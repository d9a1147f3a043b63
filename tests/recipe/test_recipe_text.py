"""The recipes of DistilBERT: a classifier and a masked language model of one vocabulary, and what they refuse."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from command import Done, start
from recipe_runs import results

from kdcache.config import Recipe
from kdcache.errors import UsageError
from kdcache.models import (
    InputSpec,
    WeightsInfo,
    build_model,
    is_language_model,
    load_model,
    load_weights,
    save_weights,
)
from kdcache.recipe.preflight import check_recipe
from kdcache.recipe_file import load_recipe
from kdcache.recipe_students import resolve_students
from kdcache.sources import open_source
from kdcache.teacher.frozen import load_teacher
from kdcache.teacher.positions import output_shapes

pytest.importorskip("transformers")

RECIPES = Path(__file__).parents[2] / "data" / "recipes"
FEW = ("source.rows=24", "source.labelled=24", "eval_source.rows=16", "store.unit_rows=64", "store.block_rows=8")
TINY = (*FEW, "train.epochs=1", "train.seeds=[0]", "train.batch_size=8", "teacher.fit.epochs=1")


def recipe(data_root: Path, name: str, changes: Sequence[str] = ()) -> Recipe:
    for dataset in ("sst2", "wikitext-2"):
        if not (data_root / dataset).is_dir():
            pytest.skip(f"no {dataset} in {data_root}: `kdcache data get {dataset}`")
    return load_recipe(RECIPES / f"{name}.toml", changes)


def run(data_root: Path, folder: Path, name: str, out: Path, changes: Sequence[str]) -> Done:
    recipe(data_root, name)
    sets = [word for change in changes for word in ("--set", change)]
    return start(folder / "said", "run", RECIPES / f"{name}.toml", "--out", out, "--jobs", "1", *sets).wait(800)


def checked(given: Recipe) -> dict[str, object]:
    return check_recipe(lambda *_: None, given, resolve_students(given))


def test_both_can_be_run_and_one_vocabulary_is_in_both(data_root: Path) -> None:
    sentences, words = recipe(data_root, "distilbert"), recipe(data_root, "distilbert-mlm")
    assert checked(sentences) == {"positions": None, "labelled": True, "classes": True}
    assert checked(words) == {"positions": 32, "labelled": True, "classes": False}
    tokenizers = [open_source(one.source).extra["tokenizer"] for one in (sentences, words)]  # type: ignore[attr-defined]
    assert tokenizers[0] == tokenizers[1]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            ["student.args.vocab_size=1500"],
            r"student student: .*vocab_size = 1500.* 2000 tokens; give vocab_size",
        ),
        (["teacher.args.vocab_size=1500"], r"hf:bert: args.vocab_size = 1500, and the source's tokenizer has 2000"),
        (["student.args.pad=4"], r"student student: .*args.pad = 4, and .* rows up with token 0; give pad = 0"),
        (["teacher.source.vocabulary=1500"], r"source has the vocabulary .* of 2000 tokens, teacher.source has .*1500"),
        (["student.args.task=masked"], r"student student: .*vocab_size comes from the data"),
    ],
)
def test_what_does_not_fit_is_refused_before_any_work(data_root: Path, change: list[str], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        checked(recipe(data_root, "distilbert", [*FEW, *change]))


def test_a_vocabulary_larger_than_the_tokenizer_is_only_never_read(data_root: Path) -> None:
    assert checked(recipe(data_root, "distilbert", [*FEW, "student.args.vocab_size=2048"]))


def test_a_teacher_of_another_vocabulary_is_no_teacher(data_root: Path, tmp_path: Path) -> None:
    given = recipe(data_root, "distilbert", FEW)
    source = open_source(given.source)
    config = given.teacher
    assert config
    array, own = source.arrays["input"], source.extra["tokenizer"]  # type: ignore[attr-defined]
    model = build_model("hf:bert", config.args, input=array, outputs=2, positions=None)
    for name, vocabulary in {"same": own["vocabulary"], "other": "0" * 64}.items():
        info = WeightsInfo("hf:bert", config.args, array, 2, extra={"tokenizer": {**own, "vocabulary": vocabulary}})
        save_weights(tmp_path / name, model, info)
    frozen = {name: load_teacher(config, source.arrays, 2, InputSpec(), tmp_path / name) for name in ("same", "other")}
    assert output_shapes(frozen["same"], source) == {"logits": (2,), "features.pooler": (64,)}
    with pytest.raises(UsageError, match=r"has the vocabulary .* teacher hf:bert has 0000.* use one tokenizer"):
        output_shapes(frozen["other"], source)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_classifier_runs_and_begins_with_the_body_of_the_language_model(data_root: Path, tmp_path: Path) -> None:
    first, second = tmp_path / "words", tmp_path / "sentences"
    done = run(data_root, tmp_path, "distilbert-mlm", first, [*TINY[:1], *TINY[2:]])
    assert done.code == 0, done.err
    found = results(first)
    teacher, student = found["teacher"], found["students"]["student"]
    assert 1 < teacher["perplexity"] < 1e4
    assert student["perplexity"]["seeds"]
    assert student["parameters"] < teacher["parameters"]
    assert {"ce", "kd", "cosine"} == {term["name"] for term in student["objective"]}
    body = first / "students/student/seed-0/model.safetensors"
    done = run(data_root, tmp_path, "distilbert", second, [*TINY, f"student.weights={body}", "train.lr=1e-9"])
    assert done.code == 0, done.err
    found = results(second)
    assert found["store"]["fields"]["logits"]["array"] == "float32[2]", "one judgement of a row, none of its tokens"
    assert found["store"]["fields"]["features.pooler"]["array"] == "float32[64]"
    assert found["students"]["student"]["parameters"] < found["teacher"]["parameters"]
    model, _ = load_model(second / "students/student/seed-0/model.safetensors")
    assert not is_language_model(model)
    before, after = load_weights(body)[0], model.state_dict()
    shared = before.keys() & after.keys()
    assert {name.split(".")[2] for name in shared} == {"embeddings", "encoder"}
    for name in shared:  # at a rate of nothing they are what it began with
        torch.testing.assert_close(after[name], before[name], atol=1e-5, rtol=0)
