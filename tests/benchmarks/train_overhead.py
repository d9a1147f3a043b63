"""What training from a store costs: an epoch of the fit from a store, over one from tensors in memory.

    .venv/bin/python tests/benchmarks/train_overhead.py [--rounds 3] [--threads 1] [--rows 60000]

MLP-128 on Fashion-MNIST, batch 256, kd + ce on dense fp16 logits. Three ways take turns, so that a busy machine is busy
for all of them: `store` is `fit` as it is; `memory` is the same `fit` with its loader replaced by `index_select` over
decoded tensors; `bare` is a hand-written loop in plain torch without metrics, checkpoints or recipe. The first epoch of
each fit, in which blocks are read and verified, is listed on its own. Medians; CPU seconds (all threads of the process)
say the same as wall seconds on a machine that others use too.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "student"))

import numpy as np
import torch
from student_stores import soft_labels, write_store

from kdcache.config import ObjectiveConfig, SourceConfig, TrainConfig
from kdcache.loader import StreamingLoader
from kdcache.models import InputSpec, build_model
from kdcache.objectives import compose
from kdcache.sources import open_source
from kdcache.store import open_store
from kdcache.student import Progress, fit, loop

BATCH, EPOCHS = 256, 4
OBJECTIVE = [ObjectiveConfig(name="kd", weight=0.9, temperature=2.0), ObjectiveConfig(name="ce", weight=0.1)]


Times = list[tuple[float, float]]  # wall and CPU seconds of each epoch


class Clock(Progress):
    """Times each epoch."""

    def __init__(self, epoch_steps: int) -> None:
        self.epoch_steps, self.times = epoch_steps, Times()

    def started(self, place: str, step: int, steps: int, rows: int) -> None:
        self.wall, self.cpu = time.perf_counter(), time.process_time()

    def stepped(self, step: int) -> None:
        if step % self.epoch_steps == 0:
            wall, cpu = time.perf_counter(), time.process_time()
            self.times.append((wall - self.wall, cpu - self.cpu))
            self.wall, self.cpu = wall, cpu


class InMemory:
    """The loader's door over tensors that are already decoded."""

    tensors: dict[str, torch.Tensor]

    def __init__(self, *args: Any, fields: tuple[str, ...], **options: Any) -> None:
        self._fields, self._generator = fields, torch.Generator().manual_seed(0)

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        order = torch.randperm(len(self.tensors["id"]), generator=self._generator)
        for places in order.split(BATCH):
            if 2 * len(places) >= BATCH:
                yield {name: self.tensors[name].index_select(0, places) for name in (*self._fields, "id")}

    def state_dict(self) -> dict[str, Any]:
        return {}

    def close(self) -> None:
        pass


def fitted(store: Path, out: Path, epoch_steps: int, loader: Any) -> Times:
    """A fit that takes its batches from `loader`."""
    clock = Clock(epoch_steps)
    loop.__dict__["StreamingLoader"] = loader
    fit(
        "zoo:mlp",
        {"hidden": [128]},
        [store],
        out,
        objective=OBJECTIVE,
        train=TrainConfig(epochs=EPOCHS, batch_size=BATCH),
        seed=0,
        identity={},
        progress=clock,
    )
    loop.__dict__["StreamingLoader"] = StreamingLoader
    return clock.times


def bare(store: Path, spec: InputSpec, epoch_steps: int) -> Times:
    """A plain loop over the same tensors."""
    with open_store(store) as reader:
        model = build_model("zoo:mlp", {"hidden": [128]}, input=reader.fields["input"].array, outputs=10)
        objective = compose(OBJECTIVE, reader.fields, 10)
    optimizer = torch.optim.Adam(model.parameters(), fused=True)
    loader, clock, step = InMemory(fields=("input", *objective.fields)), Clock(epoch_steps), 0
    clock.started("", 0, 0, 0)
    for _ in range(EPOCHS):
        for batch in loader:
            loss, _ = objective({"logits": model(spec.apply(batch["input"]))}, batch, torch.nn.ModuleDict())
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            step += 1
            clock.stepped(step)
    return clock.times


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--threads", type=int, default=1)
    options.add_argument("--rows", type=int, default=60000)
    chosen = options.parse_args()
    torch.set_num_threads(chosen.threads)
    shared = Path(__file__).parents[3] / "shared" / "data"
    os.environ.setdefault("KDCACHE_DATA", str(shared))
    source = open_source(SourceConfig(dataset="fashion-mnist"))
    rows = source.read(source.ids()[: chosen.rows])
    logits = soft_labels(rows["input"][:, ::2, ::2], rows["label"])
    times: dict[str, list[Times]] = {"store, parquet": [], "store, hdf5": [], "memory": [], "bare": []}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        stores = {
            kind: write_store(
                folder / kind,
                rows["input"],
                rows["label"],
                logits=logits,
                dtype="float16",
                block_rows=1024,
                format=kind,
            )
            for kind in ("parquet", "hdf5")
        }
        with open_store(stores["parquet"]) as reader:
            InMemory.tensors = {
                column: torch.from_numpy(np.array(reader.read_column(column)))
                for column in ("id", "input", "label", "logits")
            }
            statistics_ = reader.plan.input_statistics
        assert statistics_ is not None
        spec = InputSpec(tuple(statistics_["mean"]), tuple(statistics_["std"]))
        steps = len(rows["label"]) // BATCH + (2 * (len(rows["label"]) % BATCH) >= BATCH)
        for turn in range(chosen.rounds):
            for kind in ("parquet", "hdf5"):
                times[f"store, {kind}"].append(fitted(stores[kind], folder / f"{kind}{turn}", steps, StreamingLoader))
            times["memory"].append(fitted(stores["parquet"], folder / f"memory{turn}", steps, InMemory))
            times["bare"].append(bare(stores["parquet"], spec, steps))
    print(
        f"{chosen.rows} rows, {steps} steps of {BATCH}, {chosen.threads} threads, "
        f"{chosen.rounds} fits of {EPOCHS} epochs each, torch {torch.__version__}"
    )
    print(f"{'':16}{'wall s':>8}{'of memory':>11}{'first':>8}{'samples/s':>11}{'CPU s':>9}{'of memory':>11}")
    wall, cpu = (later(times["memory"], clock) for clock in (0, 1))
    for name, runs in times.items():
        first = statistics.median(run[0][0] for run in runs)
        print(
            f"{name:16}{later(runs, 0):8.3f}{later(runs, 0) / wall:11.3f}{first:8.3f}"
            f"{steps * BATCH / later(runs, 0):11,.0f}{later(runs, 1):9.3f}{later(runs, 1) / cpu:11.3f}"
        )


def later(runs: list[Times], clock: int) -> float:
    """The median epoch but the first, by wall (0) or CPU (1) seconds."""
    return statistics.median(times[clock] for run in runs for times in run[1:])


if __name__ == "__main__":
    main()
