"""Relational losses of a global batch that several gloo processes hold parts of, against one process with all of it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from objectives_ranks import Network, batch_of, gradients, micro_batches
from safetensors.torch import load_file
from torch import Tensor

from kdcache.codecs import QuantisedLogits
from kdcache.objectives.gather import global_batch

HERE = Path(__file__).parent
# Rows x micro-batches: as many everywhere, one more here and there, a process without any.
CASES = {2: ["8x1", "7x1", "14x2", "13x2"], 3: ["9x1", "8x1", "7x1", "23x2"], 5: ["4x1"]}


def run(world: int, cases: list[str], folder: Path) -> None:
    environment = os.environ | {"PYTHONPATH": f"{HERE.parents[1]}:{HERE}", "OMP_NUM_THREADS": "1"}
    script = [sys.executable, str(HERE / "objectives_ranks.py")]
    ranks = [
        subprocess.Popen(
            [*script, str(rank), str(world), str(folder / "meeting"), str(folder), *cases],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(world)
    ]
    try:
        said = [rank.communicate(timeout=200)[0] for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    assert [rank.returncode for rank in ranks] == [0] * world, "\n".join(said)


def alone(rows: int, world: int, parts: int) -> dict[str, Tensor]:
    """The mean over micro-batches, weighed by their rows, of the loss of all processes' rows of each, in order."""
    inputs, teacher = batch_of(rows)
    network = Network()
    total = torch.zeros(())
    for places in micro_batches(rows, world, parts):
        mine = torch.cat([torch.arange(rows)[place] for place in places]).sort().values
        loss = network(inputs[mine], teacher[mine], len(mine) / rows)
        loss.backward()
        total += loss.detach()
    return {"loss": total, **gradients(network)}


@pytest.mark.parametrize("world", CASES)
def test_several_processes_give_the_loss_and_gradients_of_one(world: int, tmp_path: Path) -> None:
    run(world, CASES[world], tmp_path)
    for case in CASES[world]:
        expected = alone(int(case.split("x")[0]), world, int(case.split("x")[1]))
        assert len(expected) == 7
        assert expected["loss"] > 0.1
        for rank in range(world):
            found = load_file(tmp_path / f"{case}-{rank}.safetensors")
            assert found.keys() == expected.keys()
            for name, value in expected.items():
                assert name == "loss" or value.any()
                torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-6, msg=f"{case}, {rank}, {name}")


def test_one_process_gets_its_argument() -> None:
    rows = torch.randn(3, 4, requires_grad=True)
    assert global_batch(rows) is rows
    codes = QuantisedLogits(torch.zeros(3, 4, dtype=torch.uint8), torch.ones(3, 1), torch.ones(3, 1))
    assert global_batch(codes) is codes
