"""A fit that is killed, stopped or damaged, and goes on: the same bytes in the end as one that never stopped."""

from __future__ import annotations

import json
import random
import signal
import time
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
from student_runs import RUNS, StopAt, begin, small

from kdcache.errors import CheckpointError, Interrupted
from kdcache.student import Progress, read_metrics


class Lines(Progress):
    """Keeps what was said and where the fit began."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.began = -1

    def said(self, line: str) -> None:
        self.lines.append(line)

    def started(self, place: str, step: int, steps: int, rows: int) -> None:
        self.began = step


@pytest.fixture
def stores(digits_store: Path, plain_store: Path) -> dict[str, Path]:
    return {"augmented": digits_store, "with_hint": plain_store, "contested": plain_store}


def newest(out: Path) -> int:
    return max((int(path.name[5:]) for path in (out / "resume").glob("step-*")), default=0)


def wait_for(process: BaseProcess, out: Path, step: int) -> None:
    """Until a checkpoint past `step` is there, or the process is done."""
    deadline = time.monotonic() + 60
    while process.is_alive() and newest(out) <= step:
        assert time.monotonic() < deadline
        time.sleep(0.002)


@pytest.mark.parametrize(("name", "seconds"), [("augmented", 0.0), ("with_hint", 0.1), ("contested", 0.1)])
def test_killed_again_and_again_it_ends_with_the_same_bytes(
    name: str, seconds: float, stores: dict[str, Path], tmp_path: Path
) -> None:
    RUNS[name](stores[name], tmp_path / "whole", 30.0)
    out, chance, killed = tmp_path / "killed", random.Random(name), 0
    for _ in range(2):
        process = begin(name, stores[name], out, seconds)
        wait_for(process, out, newest(out))
        time.sleep(chance.uniform(0, 0.25))
        process.kill()
        process.join()
        killed += process.exitcode == -signal.SIGKILL
    assert killed >= 1
    assert (out / "result.json").exists() is (killed < 2)
    final = begin(name, stores[name], out, 30.0)
    final.join()
    assert final.exitcode == 0
    assert (out / "model.safetensors").read_bytes() == (tmp_path / "whole" / "model.safetensors").read_bytes()
    assert read_metrics(out) == read_metrics(tmp_path / "whole")
    last = out / f"resume/step-{newest(out):08d}"
    for part in last.glob("*.safetensors"):
        assert part.read_bytes() == (tmp_path / "whole" / "resume" / last.name / part.name).read_bytes()
    ours, theirs = (json.loads((folder / "result.json").read_bytes()) for folder in (out, tmp_path / "whole"))
    for key in ("seconds", "samples_per_second"):
        del ours[key], theirs[key]
    assert ours == theirs


def test_sigterm_writes_a_checkpoint_and_exits_75(stores: dict[str, Path], tmp_path: Path) -> None:
    process = begin("augmented", stores["augmented"], tmp_path / "run", 0.0)
    wait_for(process, tmp_path / "run", 3)
    process.terminate()
    process.join()
    assert process.exitcode == 75
    assert not (tmp_path / "run" / "result.json").exists()
    RUNS["augmented"](stores["augmented"], tmp_path / "run", 30.0)
    RUNS["augmented"](stores["augmented"], tmp_path / "whole", 30.0)
    assert (tmp_path / "run/model.safetensors").read_bytes() == (tmp_path / "whole/model.safetensors").read_bytes()


def stopped_at(step: int, store: Path, out: Path, seconds: float = 0.0) -> None:
    with pytest.raises(Interrupted, match=f"SIGINT after step {step} of 66; run the same command again"):
        small(store, out, checkpoint_seconds=seconds, progress=StopAt(step))


def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(digits_store: Path, tmp_path: Path) -> None:
    stopped_at(9, digits_store, tmp_path / "run")
    damaged = tmp_path / "run/resume/step-00000009/model.safetensors"
    data = bytearray(damaged.read_bytes())
    data[-5] ^= 1
    damaged.write_bytes(data)
    watcher = Lines()
    result = small(digits_store, tmp_path / "run", progress=watcher)
    assert watcher.began == 8
    assert len(watcher.lines) == 1
    assert "step-00000009: passed over, it is damaged (model.safetensors has the SHA-256" in watcher.lines[0]
    whole = small(digits_store, tmp_path / "whole")
    assert (tmp_path / "run/model.safetensors").read_bytes() == (tmp_path / "whole/model.safetensors").read_bytes()
    assert result.identity == whole.identity


@pytest.mark.parametrize("byte", [b"", b"{", b'{"step": 9}'])
def test_a_fit_whose_checkpoints_are_all_damaged_says_so(byte: bytes, digits_store: Path, tmp_path: Path) -> None:
    stopped_at(5, digits_store, tmp_path / "run")
    for path in (tmp_path / "run/resume").glob("*/state.json"):
        path.write_bytes(byte)
    with pytest.raises(CheckpointError, match="all 2 checkpoints are damaged; remove that folder"):
        small(digits_store, tmp_path / "run")


def test_any_flipped_byte_of_the_state_is_found(digits_store: Path, tmp_path: Path) -> None:
    stopped_at(2, digits_store, tmp_path / "run", 30.0)
    path = tmp_path / "run/resume/step-00000002/state.json"
    whole = path.read_bytes()
    for place in range(0, len(whole) - 1, len(whole) // 12):
        data = bytearray(whole)
        data[place] ^= 4
        path.write_bytes(data)
        with pytest.raises(CheckpointError, match="damaged"):
            small(digits_store, tmp_path / "run")


def test_another_fit_in_the_folder_is_refused_by_name(digits_store: Path, tmp_path: Path) -> None:
    stopped_at(2, digits_store, tmp_path / "run")
    with pytest.raises(CheckpointError, match=r"its train.lr is 0.001, this one's is 0.5; choose another"):
        small(digits_store, tmp_path / "run", lr=0.5)
    with pytest.raises(CheckpointError, match=r"its seed is 0, this one's is 1"):
        small(digits_store, tmp_path / "run", seed=1)
    with pytest.raises(CheckpointError, match=r"its recipe is null, this one's is \"abc\""):
        small(digits_store, tmp_path / "run", identity={"recipe": "abc"})
    with pytest.raises(CheckpointError, match="holds a fit already"):
        small(digits_store, tmp_path / "run", resume=False)


def test_two_checkpoints_are_kept_and_none_is_half_written(digits_store: Path, tmp_path: Path) -> None:
    stopped_at(7, digits_store, tmp_path / "run")
    assert sorted(path.name for path in (tmp_path / "run/resume").iterdir()) == ["step-00000006", "step-00000007"]
    state = json.loads((tmp_path / "run/resume/step-00000007/state.json").read_bytes())
    assert len(state["identity"]["stores"][0]) == 64
    assert state["facts"]["loader"]["position"] == 7 * 64


def test_killed_between_the_last_step_and_the_result_it_only_finishes(
    digits_store: Path, digits_eval: Path, tmp_path: Path
) -> None:
    first = small(digits_store, tmp_path, epochs=1, eval_store=digits_eval)
    rows, weights = read_metrics(tmp_path), (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "result.json").unlink()
    (tmp_path / "model.safetensors").unlink()
    watcher = Lines()
    again = small(digits_store, tmp_path, epochs=1, eval_store=digits_eval, progress=watcher)
    assert watcher.began == first.steps
    assert read_metrics(tmp_path) == rows
    assert (tmp_path / "model.safetensors").read_bytes() == weights
    assert again.eval == first.eval
