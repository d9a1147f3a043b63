"""Runs that are killed, stopped, extended or partly deleted: they go on, and end as one that was not."""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from command import Done, Running, forked, start, until
from conftest import Finished
from recipe_runs import lasting, results, stamps, write

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
LONG = ("steps = 20\nbatch_size = 32\nseeds", "steps = 60\ncheckpoint_seconds = 0\nbatch_size = 32\nseeds")


def kd(folder: Path, *words: object) -> Done:
    done = forked(folder / "said", "run", *words, "--jobs", "2")
    assert done.code == 0, done.err
    return done


def begin(folder: Path, recipe: Path, out: Path) -> Running:
    return start(folder / "said", "run", recipe, "--out", out, "--jobs", "2")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("undisturbed")
    recipe = write(folder, LONG)
    kd(folder, recipe, "--out", folder / "out")
    return recipe, folder / "out"


MOMENTS: list[Callable[[Path], bool]] = [
    lambda out: (out / "inputs" / "plan.json").exists(),
    lambda out: (out / "teacher" / "metrics.jsonl").exists(),
    lambda out: (out / "store" / "units" / "000001.json").exists(),
    lambda out: any((out / "baseline").glob("seed-*/resume/step-*")),
    lambda out: any((out / "students").glob("*/seed-*/resume/step-*3?")),
    lambda out: (out / "stages" / "predictions.json").exists(),
]


def test_killed_at_many_moments(undisturbed: tuple[Path, Path], tmp_path: Path) -> None:
    recipe, whole = undisturbed
    out, killed = tmp_path / "out", 0
    for moment in MOMENTS:
        running = begin(tmp_path, recipe, out)
        until(lambda: moment(out) or not running.process.is_alive(), "the moment to kill", 200)  # noqa: B023
        killed += running.kill().code != 0
    kd(tmp_path, recipe, "--out", out)
    assert killed >= 4
    assert lasting(results(out)) == lasting(results(whole))
    for name in ("teacher", "students/student/seed-1", "baseline/seed-0"):
        a, b = ((o / name / "model.safetensors").read_bytes() for o in (out, whole))
        assert a == b, name


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("group", [True, False])
def test_asked_to_stop(undisturbed: tuple[Path, Path], tmp_path: Path, number: int, group: bool) -> None:
    recipe, whole = undisturbed
    out = tmp_path / "out"
    if number == signal.SIGINT and not group:
        pytest.skip("a terminal sends SIGINT to the whole group")
    for moment in (MOMENTS[0], MOMENTS[4]):
        running = begin(tmp_path, recipe, out)
        until(lambda: moment(out) or not running.process.is_alive(), "the moment to stop", 200)  # noqa: B023
        running.signal(number, group=group)
        done = running.wait()
        assert done.code == 75, done.err
        assert "Traceback" not in done.err
        assert "run the same command again" in done.err or "the same command goes on" in done.err
    kd(tmp_path, recipe, "--out", out)
    assert lasting(results(out)) == lasting(results(whole))


def test_students_that_are_added_are_all_that_is_fitted(tmp_path: Path) -> None:
    out, recipe = tmp_path / "out", write(tmp_path)
    kd(tmp_path, recipe, "--out", out)
    before, first = stamps(out), results(out)
    more = "[students.student]\n[students.hot]\n[[students.hot.objective]]\nname = 'kd'\ntemperature = 8.0\n"
    write(tmp_path, more=more)
    kd(tmp_path, recipe, "--out", out)
    after = stamps(out)
    changed = {name.split("/")[0] for name in before if after[name] != before[name]}
    assert changed <= {"results.json", "report.html", "stages"}
    assert {n for n in after if n not in before and "stages" not in n and not n.startswith("students/hot/")} == set()
    found = results(out)
    assert list(found["students"]) == ["student", "hot"]
    assert lasting(found["students"]["student"]) == lasting(first["students"]["student"])
    assert len(found["students"]["hot"]["accuracy"]["seeds"]) == 2


def test_what_was_deleted_is_made_again(tmp_path: Path) -> None:
    out, recipe = tmp_path / "out", write(tmp_path, ("seeds = [0, 1]", "seeds = [0]"))
    kd(tmp_path, recipe, "--out", out)
    first = results(out)
    shutil.rmtree(out / "store")
    shutil.rmtree(out / "students")
    kd(tmp_path, recipe, "--out", out)
    assert lasting(results(out)) == lasting(first)
    assert (out / "students" / "student" / "seed-0" / "model.safetensors").exists()


def test_students_of_other_networks_have_their_own_baselines(tmp_path: Path) -> None:
    more = "[students.small]\n[students.wide]\nargs = { hidden = [16] }\n"
    recipe = write(tmp_path, ("seeds = [0, 1]", "seeds = [0]"), more=more)
    kd(tmp_path, recipe, "--out", tmp_path / "out")
    found = results(tmp_path / "out")
    assert (tmp_path / "out" / "baseline-wide" / "seed-0" / "result.json").exists()
    wide = found["students"]["wide"]
    assert wide["baseline"]["parameters"] == wide["parameters"] != found["baseline"]["parameters"]


def test_a_grid_uses_one_store(tmp_path: Path) -> None:
    more = '[grid]\n"kd.weight" = [0.5, 1.0]\n"kd.temperature" = [1.0, 4.0]\n'
    recipe = write(tmp_path, ("seeds = [0, 1]", "seeds = [0]"), more=more)
    kd(tmp_path, recipe, "--out", tmp_path / "out")
    found = results(tmp_path / "out")
    assert list(found["students"]) == [f"kd.weight={w},kd.temperature={t}" for w in (0.5, 1.0) for t in (1.0, 4.0)]
    assert found["grid"]["axes"] == {"kd.weight": [0.5, 1.0], "kd.temperature": [1.0, 4.0]}
    assert found["grid"]["cells"]["kd.weight=1.0,kd.temperature=4.0"] == [1.0, 4.0]
    digests = {
        json.loads(p.read_text())["stores"][0] for p in (tmp_path / "out" / "students").glob("*/seed-0/result.json")
    }
    assert digests == {found["store"]["digest"]}


def test_without_an_evaluation_source_and_with_given_weights(finished: Finished, tmp_path: Path) -> None:
    shutil.copy(finished.out / "teacher" / "model.safetensors", tmp_path / "teacher.safetensors")
    recipe = write(
        tmp_path,
        ('[eval_source]\nkind = "digits"\nsplit = "test"\nrows = 100\n', ""),
        ("fit = { steps = 20, batch_size = 32 }", 'weights = "teacher.safetensors"'),
        ("seeds = [0, 1]", "seeds = [0]"),
    )
    kd(tmp_path, recipe, "--out", tmp_path / "out")
    found = results(tmp_path / "out")
    assert found["teacher"]["accuracy"] is None
    assert "accuracy" not in found["baseline"]
    assert found["store"]["digest"] == results(finished.out)["store"]["digest"], "the same teacher, the same store"
    assert not (tmp_path / "out" / "teacher").exists()
    assert not (tmp_path / "out" / "eval").exists()
    assert (tmp_path / "out" / "report.html").stat().st_size > 2000
