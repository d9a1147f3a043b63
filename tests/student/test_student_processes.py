"""Two processes under torchrun fit what one does."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from language_stores import bigram, prompts_hidden, tokens, write_tokens
from safetensors.torch import load_file

from kdcache.student import read_metrics

HERE = Path(__file__).parent


def fitted_by(processes: int, kind: str, store: Path, folder: Path) -> list[list[list[str]]]:
    """The ids of every batch of every rank."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = os.environ | {
        "PYTHONPATH": f"{HERE.parents[1]}:{HERE}",
        "OMP_NUM_THREADS": "1",
    }
    if torch.cuda.is_available():  # two processes cannot share one GPU; without any, nobody has to say it
        environment["ACCELERATE_USE_CPU"] = "true"
    script = [str(HERE / "student_ranks.py"), kind, str(store), str(folder / "run"), str(folder / "notes")]
    launch = ["-m", "torch.distributed.run", "--nproc-per-node", str(processes), "--master-port", str(port)]
    done = subprocess.run(
        [sys.executable, *(launch if processes > 1 else []), *script],
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    notes = [(folder / "notes" / str(rank)).read_text() for rank in range(processes)]
    return [[line.split() for line in text.splitlines()] for text in notes]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["hinted", "tokens", "relations", "contest"])
def test_two_processes_take_the_steps_of_one(kind: str, plain_store: Path, tmp_path: Path) -> None:
    store = plain_store
    if kind == "tokens":  # with another number of scored positions in every row
        rows, extra = tokens(0, 400)
        store = write_tokens(tmp_path / "store", prompts_hidden(rows), extra, logits=bigram(rows), codec="topk", k=5)
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    (alone,) = fitted_by(1, kind, store, tmp_path / "one")
    first, second = fitted_by(2, kind, store, tmp_path / "two")
    assert len(alone) == len(first) == len(second) > 20
    for whole, even, odd in zip(alone, first, second, strict=True):
        assert whole[0::2] == even
        assert whole[1::2] == odd
    one, two = (load_file(tmp_path / name / "run/model.safetensors") for name in ("one", "two"))
    for name in one:
        torch.testing.assert_close(one[name], two[name], rtol=1e-3, atol=1e-5)
    for ours, theirs in zip(*(read_metrics(tmp_path / name / "run") for name in ("one", "two")), strict=True):
        assert (ours["step"], ours["split"]) == (theirs["step"], theirs["split"])
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-4)
        assert ours.get("terms") == pytest.approx(theirs.get("terms"), rel=1e-3)
    results = [json.loads((tmp_path / name / "run/result.json").read_bytes()) for name in ("one", "two")]
    assert results[0]["identity"] == results[1]["identity"]
    assert results[0]["steps"] == results[1]["steps"]
