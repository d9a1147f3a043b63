"""`kdcache run`: what a run leaves behind, and what a second call does."""

from __future__ import annotations

import json
import math
import statistics
from pathlib import Path

import pytest
from command import Done, forked, one_error_line
from conftest import Finished
from recipe_runs import lasting, results, stamps, write

from kdcache.config import Recipe
from kdcache.recipe_file import load_recipe
from kdcache.recipe_students import resolve_students
from kdcache.store import describe, verify


def kd(folder: Path, *words: object) -> Done:
    return forked(folder / "said", "run", *words, "--jobs", "2")


def test_a_run_leaves_what_the_readme_says(finished: Finished) -> None:
    assert finished.done.code == 0, finished.done.err
    assert "Traceback" not in finished.done.err
    out = finished.out
    for fit in ("teacher", "baseline/seed-0", "baseline/seed-1", "students/student/seed-0", "students/student/seed-1"):
        for name in ("model.safetensors", "result.json", "metrics.jsonl"):
            assert (out / fit / name).stat().st_size, (fit, name)
        assert list((out / fit / "resume").glob("step-*"))
    for store in ("inputs", "eval", "store"):
        assert verify(out / store, deep=True)["strange_files"] == []
    assert (out / "report.html").stat().st_size > 2000
    assert sorted(p.name for p in out.iterdir()) == [
        "baseline", "eval", "inputs", "report.html", "results.json", "stages", "store", "students", "teacher"
    ]  # fmt: skip


def test_results_say_what_was_measured(finished: Finished) -> None:
    found = results(finished.out)
    assert 0 <= found["teacher"]["accuracy"] <= 1
    alone, student = found["baseline"]["accuracy"], found["students"]["student"]["accuracy"]
    for accuracy in (alone, student):
        assert len(accuracy["seeds"]) == 2
        assert accuracy["mean"] == pytest.approx(statistics.mean(accuracy["seeds"]))
        assert accuracy["sd"] == pytest.approx(statistics.stdev(accuracy["seeds"]))
    for seed in (0, 1):
        one = json.loads((finished.out / f"students/student/seed-{seed}/result.json").read_text())
        assert one["eval"]["accuracy"] == student["seeds"][seed]
        assert one["stores"] == [found["store"]["digest"]]
    facts = describe(finished.out / "store")
    assert (found["store"]["rows"], found["store"]["digest"]) == (200, facts["digest"])
    assert found["store"]["bytes_per_row"] == pytest.approx(facts["bytes"] / 200, abs=0.01)
    assert found["store"]["target_bytes_per_row"] == 2 + 3 * 2 + 6  # three indices of 4 bits, three values, the tail
    assert found["seeds"] == [0, 1]
    assert found["students"]["student"]["steps"] == found["baseline"]["steps"] == 20
    assert found["students"]["student"]["gain"]
    assert math.isfinite(found["throughput"]["train_samples_per_second"])
    assert found["command"].startswith("kdcache run ")
    assert "student" in finished.done.out
    assert "report.html" in finished.done.out


def test_processes_that_fit_never_import_a_teacher(finished: Finished) -> None:
    fits = [names for names in finished.imports.values() if "kdcache.student.optimizer" in names]
    dumps = [names for names in finished.imports.values() if "kdcache.teacher.dump" in names]
    assert len(fits) >= 2, "one for the teacher, at least one for the others, which may share"
    assert len(dumps) >= 4, "inputs, eval, store, accuracy"
    for names in fits:
        assert not [name for name in names if name.startswith(("kdcache.teacher", "timm", "transformers"))]


def test_a_second_call_does_nothing(finished: Finished, tmp_path: Path) -> None:
    before = stamps(finished.out)
    done = kd(tmp_path, finished.recipe, "--out", finished.out)
    assert done.code == 0, done.err
    assert stamps(finished.out) == before
    assert "student" in done.out
    again = kd(tmp_path, finished.recipe, "--out", finished.out, "--json")
    assert json.loads(again.out) == results(finished.out)
    assert stamps(finished.out) == before


@pytest.mark.slow
def test_another_store_into_the_same_run_is_refused(finished: Finished, tmp_path: Path) -> None:
    other = write(tmp_path, ("unit_rows = 64", "unit_rows = 96"))
    before = stamps(finished.out)
    done = kd(tmp_path, other, "--out", finished.out)
    assert done.code == 65, done.err
    assert "Traceback" not in done.err
    assert "holds a store with another plan" in done.err
    assert "rows is 64 there and 96 in this recipe" in done.err
    kept = before.keys() - {"stages/check.json"}  # the other recipe was checked, and found sound by itself
    after = stamps(finished.out)
    assert {key: after[key] for key in kept} == {key: before[key] for key in kept}


def test_a_recipe_without_a_teacher_writes_its_inputs(tmp_path: Path) -> None:
    recipe = tmp_path / "inputs.toml"
    recipe.write_text('[source]\nkind = "digits"\nrows = 100\n')
    done = kd(tmp_path, recipe, "--out", tmp_path / "run")
    assert done.code == 0, done.err
    assert describe(tmp_path / "run" / "inputs")["complete"]
    assert f"store: {tmp_path / 'run' / 'inputs'}" in done.out
    assert not (tmp_path / "run" / "results.json").exists()


def test_students_without_a_teacher_are_refused(tmp_path: Path) -> None:
    recipe = tmp_path / "no-teacher.toml"
    recipe.write_text('[source]\nkind = "digits"\n[student]\nmodel = "zoo:mlp"\n[[objective]]\nname = "ce"\n')
    one_error_line(kd(tmp_path, recipe, "--out", tmp_path / "run"), 64, "names students but no [teacher]")


def test_students_share_a_baseline_where_they_may(tmp_path: Path) -> None:
    from kdcache.recipe.run import _fits

    more = """
[students.a]
[students.b]
[[students.b.objective]]
name = "soft_ce"
[students.wide]
args = { hidden = [16] }
[students.long.train]
steps = 30
"""
    recipe: Recipe = load_recipe(write(tmp_path, more=more))
    folders, baseline_of, fits = _fits(resolve_students(recipe), Path("i"), {None: Path("s")}, None, Path("out"))
    assert baseline_of == {"a": "baseline", "b": "baseline", "wide": "baseline-wide", "long": "baseline-long"}
    assert len(fits) == 2 * (3 + 4)
    assert len({stage.name for stage in fits}) == len(fits)
    assert folders["baseline-wide"] == [Path("out/baseline-wide/seed-0"), Path("out/baseline-wide/seed-1")]
    assert folders["b"][1] == Path("out/students/b/seed-1")


def test_errors_of_a_stage_survive_the_way_back() -> None:
    import pickle

    from kdcache import errors

    for name in errors.__all__:
        kind = getattr(errors, name)
        error = kind("timm", "timm", "the model") if name == "MissingExtra" else kind("said")
        back = pickle.loads(pickle.dumps(error))
        assert (type(back), str(back), back.exit_code) == (kind, str(error), error.exit_code)


def test_lasting_leaves_the_numbers_in() -> None:
    assert lasting({"a": {"seconds": 1, "accuracy": [0.5]}, "command": ""}) == {"a": {"accuracy": [0.5]}}
