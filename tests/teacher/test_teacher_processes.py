"""Dumps that are killed, stopped, or done by several processes at once: the bytes are those of one that was not."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from command import Running, start, until
from teacher_recipes import HERE, NUMBERED, files_of, find_modules, write_recipe

from kdcache.recipe_file import load_recipe
from kdcache.store import describe
from kdcache.teacher import dump

TOPK = '[fields.logits]\ncodec = "topk"\nk = 3\n'


def slow_recipe(folder: Path, sleep: float = 0.02, *, name: str = "recipe", fields: str = TOPK) -> Path:
    """Four units of three batches, each of which takes `sleep` seconds; the plan knows the network's habits."""
    teacher = f'model = "teacher_recipes:marked"\nargs = {{ sleep = {sleep} }}'
    return write_recipe(folder, source=NUMBERED, teacher=teacher, fields=fields, name=name)


def begin(folder: Path, recipe: Path, out: str = "store", env: dict[str, str] | None = None) -> Running:
    return start(folder / "said", "dump", recipe, "--out", folder / out, before=find_modules, env=env)


def units(store: Path) -> int:
    return len(list(store.glob("units/*.json")))


def names(store: Path) -> set[str]:
    return {str(path.relative_to(store)) for path in store.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, bytes]]:
    """The recipe, and the files of a dump that nothing disturbed."""
    folder = tmp_path_factory.mktemp("whole")
    recipe = slow_recipe(folder)
    running = begin(folder, recipe)
    assert running.wait().code == 0
    return recipe, files_of(folder / "store")


def test_a_process_of_its_own_writes_what_this_one_writes(whole: tuple[Path, dict[str, bytes]], tmp_path: Path) -> None:
    recipe, files = whole
    dump(load_recipe(recipe), tmp_path / "store")
    assert files_of(tmp_path / "store") == files


@pytest.mark.parametrize("fields", ["topk", pytest.param("lowrank", marks=pytest.mark.slow)])
def test_killed_at_many_moments_and_gone_on_with(tmp_path: Path, fields: str) -> None:
    table = TOPK if fields == "topk" else '[fields.logits]\ncodec = "lowrank"\nbytes = 5'
    recipe = slow_recipe(tmp_path, fields=table)
    assert begin(tmp_path, recipe, "whole").wait().code == 0
    store = tmp_path / "store"
    kept: set[str] = set()
    for prefix in ("plan.json", "units/", "data/", "tmp/", "units/"):  # killed as soon as such a file is new
        running, old = begin(tmp_path, recipe), names(store)
        until(
            lambda: any(name.startswith(prefix) for name in names(store) - old) or not running.process.is_alive(),  # noqa: B023
            f"a new {prefix}",
        )
        running.kill()
        now = {name for name in names(store) if name.startswith("units/")}
        assert kept <= now, "what was committed stays committed"
        kept = now
    assert kept
    last = begin(tmp_path, recipe).wait()
    assert last.code == 0, last.err
    assert files_of(store) == files_of(tmp_path / "whole")


@pytest.mark.parametrize(
    ("number", "name"), [(signal.SIGINT, "SIGINT"), pytest.param(signal.SIGTERM, "SIGTERM", id="term")]
)
def test_asked_to_stop(tmp_path: Path, number: int, name: str) -> None:
    recipe = slow_recipe(tmp_path, 0.1)
    store = tmp_path / "store"
    running = begin(tmp_path, recipe)
    until(lambda: units(store) >= 1, "the first unit")
    running.signal(number)
    done = running.wait()
    assert done.code == 75, done.err
    assert f"kdcache: stopped by {name}; committed units are kept" in done.err
    assert "Traceback" not in done.err
    assert done.out == ""
    facts = describe(store)
    assert not facts["complete"]
    assert facts["units_committed"] >= 1
    before = files_of(store)
    assert not [n for n in before if n.startswith("tmp/") and n.endswith(".tmp")], "nothing half written is left"
    fast = begin(tmp_path, recipe).wait()
    assert fast.code == 0
    after = files_of(store)
    assert {n: after[n] for n in before if n.startswith(("units", "data"))} == {
        n: before[n] for n in before if n.startswith(("units", "data"))
    }


def test_asked_to_stop_before_the_first_row(tmp_path: Path) -> None:
    recipe = slow_recipe(tmp_path, 0.5)
    for number in (signal.SIGTERM, signal.SIGINT):
        running = begin(tmp_path, recipe)
        until(lambda: _handles(running, number), "the command to listen")  # noqa: B023
        running.signal(number)
        done = running.wait()
        assert done.code == 75, done.err
        assert "Traceback" not in done.err
        assert done.err.count("kdcache:") == 1


def _handles(running: Running, number: int) -> bool:
    """Whether a process has a handler of its own for a signal."""
    try:
        status = Path(f"/proc/{running.process.pid}/status").read_text()
    except OSError:
        return False
    caught = int(next(line for line in status.splitlines() if line.startswith("SigCgt")).split()[1], 16)
    term = caught >> (signal.SIGTERM - 1) & 1
    return bool(caught >> (number - 1) & 1 and term)


def test_two_processes_at_once_write_what_one_writes(whole: tuple[Path, dict[str, bytes]], tmp_path: Path) -> None:
    recipe, files = whole
    both = [begin(tmp_path, recipe) for _ in range(2)]
    for running in both:
        done = running.wait()
        assert done.code == 0, done.err
    assert files_of(tmp_path / "store") == files


def test_ranks_begin_apart_and_share_the_work(whole: tuple[Path, dict[str, bytes]], tmp_path: Path) -> None:
    recipe, files = whole
    ranks = [begin(tmp_path, recipe, env={"RANK": str(rank), "WORLD_SIZE": "2"}) for rank in range(2)]
    assert [running.wait().code for running in ranks] == [0, 0]
    assert files_of(tmp_path / "store") == files


def test_one_of_two_is_killed_and_the_other_finishes(whole: tuple[Path, dict[str, bytes]], tmp_path: Path) -> None:
    recipe, files = whole
    both = [begin(tmp_path, recipe) for _ in range(2)]
    until(lambda: units(tmp_path / "store") >= 1, "the first unit")
    both[0].kill()
    assert both[1].wait().code == 0
    assert files_of(tmp_path / "store") == files


@pytest.mark.slow
def test_torchrun(whole: tuple[Path, dict[str, bytes]], tmp_path: Path) -> None:
    recipe, files = whole
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--no-python", "--standalone"]
    kdcache = Path(sys.executable).with_name("kdcache")
    done = subprocess.run(
        [*command, str(kdcache), "dump", str(recipe), "--out", str(tmp_path / "store")],
        capture_output=True, text=True, timeout=280, check=False, env={**os.environ, "PYTHONPATH": str(HERE)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert files_of(tmp_path / "store") == files
