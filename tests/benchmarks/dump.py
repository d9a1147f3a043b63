"""Dump throughput ÷ bare forward passes: what stage one costs beside running the teacher.

    python tests/benchmarks/dump.py [--rows 12000] [--repeats 5] [--threads N] [--json FILE]

The same zoo:convnet [32, 64, 128], the same rows in the same batches of 512, the same threads; repeats are taken in
turn, medians are compared. Fashion-MNIST where it is on this machine, else noise of its shape. `ratio` is of the loop:
reading the source, teacher, encoding, hashing, writing and syncing. `whole` is of the call: opening and fingerprinting
the source, building the teacher and, for lowrank, its pass over the pilot as well, which weigh less the more rows there
are. `cpu` is the loop's ratio in processor time of all threads: on a machine that others use too, the one to believe.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from kdcache.config import FieldConfig, Recipe, SourceConfig, StoreConfig, TeacherConfig
from kdcache.models import InputSpec, WeightsInfo, build_model, save_weights
from kdcache.recipe_file import data_root
from kdcache.sources import open_source
from kdcache.sources.source import ArraySource
from kdcache.teacher import dump
from kdcache.teacher.frozen import load_teacher
from kdcache.teacher.planning import input_spec_of, inputs_plan

BATCH, WIDTHS = 512, [32, 64, 128]
CODECS = {
    "topk k = 4": FieldConfig(codec="topk", k=4),
    "dense fp16": FieldConfig(codec="dense", dtype="float16"),
    "lowrank 8 bytes": FieldConfig(codec="lowrank", bytes=8),
}


class Noise(ArraySource):
    """What Fashion-MNIST would weigh."""

    def __init__(self, rows: int) -> None:
        draw = np.random.default_rng(0)
        pixels = draw.integers(0, 256, (rows, 28, 28), np.uint8)
        super().__init__("noise", pixels, draw.integers(0, 10, rows), classes=10)


def source_of(rows: int) -> SourceConfig:
    """Fashion-MNIST, or noise where it is absent."""
    if (data_root() / "fashion-mnist").is_dir():
        return SourceConfig(dataset="fashion-mnist", rows=rows)
    return SourceConfig(kind="python", factory=f"{Path(__file__).stem}:Noise", args={"rows": rows})


def recipe_of(source: SourceConfig, weights: Path, field: FieldConfig) -> Recipe:
    """One dump."""
    teacher = TeacherConfig(model="zoo:convnet", args={"widths": WIDTHS}, weights=weights, batch_size=BATCH)
    return Recipe(source=source, store=StoreConfig(), teacher=teacher, fields={"logits": field})


class Clock:
    """Notes when a dump's loop begins."""

    cpu = 0.0

    def begin(self, rows: int, done: int) -> None:
        self.cpu = time.process_time()

    def advance(self, rows: int) -> None: ...
    def written(self, size: int) -> None: ...


class Bare:
    """Forward passes over rows that lie in memory already, in the plan's order, and nothing else."""

    def __init__(self, recipe: Recipe) -> None:
        assert recipe.teacher is not None
        source = open_source(recipe.source)
        plan = inputs_plan(recipe, source)
        self.inputs = torch.from_numpy(source.read(source.ids()[plan.permutation()])["input"])
        self.teacher = load_teacher(recipe.teacher, source.arrays, source.classes, input_spec_of(plan))

    def seconds(self) -> float:
        """One pass over all rows: scaled as in a dump, the logits kept nowhere."""
        began = time.perf_counter()
        with torch.inference_mode():
            for first in range(0, len(self.inputs), BATCH):
                batch = self.inputs[first : first + BATCH].to(self.teacher.device)
                self.teacher.model(self.teacher.input_spec.apply(batch))
        if self.teacher.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - began


def measure(source: SourceConfig, folder: Path, repeats: int) -> dict[str, list[tuple[float, float, float]]]:
    """Seconds of every repeat, (loop, whole call, processor time of the loop), `bare` and each codec in turn."""
    array = open_source(source).arrays["input"]
    torch.manual_seed(0)
    model = build_model("zoo:convnet", {"widths": WIDTHS}, input=array, outputs=10)
    weights = folder / "teacher.safetensors"
    save_weights(weights, model, WeightsInfo("zoo:convnet", {"widths": WIDTHS}, array, 10, InputSpec((73.0,), (90.0,))))
    recipes = {name: recipe_of(source, weights, field) for name, field in CODECS.items()}
    bare = Bare(next(iter(recipes.values())))
    bare.seconds()  # warm
    times: dict[str, list[tuple[float, float, float]]] = {name: [] for name in ("bare", *recipes)}
    for repeat in range(repeats):
        first = repeat % len(times)  # turns are rotated, so that nobody always follows the same one
        for name in [*times][first:] + [*times][:first]:
            began, used, clock = time.perf_counter(), time.process_time(), Clock()
            if name == "bare":
                loop = bare.seconds()
            else:
                loop = dump(recipes[name], folder / f"{name}-{repeat}", progress=clock).seconds
                used = clock.cpu
            times[name].append((loop, time.perf_counter() - began, time.process_time() - used))
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--rows", type=int, default=12_000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    sys.path.insert(0, str(Path(__file__).parent))
    with tempfile.TemporaryDirectory() as folder:
        times = measure(source_of(options.rows), Path(folder), options.repeats)
    heads = "".join(f"{head:>8}" for head in ("ratio", "least", "most", "whole", "cpu"))
    print(f"{'':18}{'samples/s':>12}{heads}   (to bare forward passes; {options.rows} rows, {options.repeats} repeats, "
          f"{options.threads} torch threads)")  # fmt: skip
    bare, _, bare_cpu = zip(*times["bare"], strict=True)
    results = []
    for name, values in times.items():
        loops, calls, cpu = zip(*values, strict=True)
        pairs = sorted(b / loop for b, loop in zip(bare, loops, strict=True))
        row = {
            "name": name,
            "samples_per_s": options.rows / statistics.median(loops),
            "ratio": statistics.median(bare) / statistics.median(loops),
            "least": pairs[0],
            "most": pairs[-1],
            "whole": statistics.median(bare) / statistics.median(calls),
            "cpu": statistics.median(bare_cpu) / statistics.median(cpu),
        }
        results.append({**row, "seconds": values})
        print(f"{name:18}{row['samples_per_s']:12,.0f}" + "".join(f"{row[key]:8.3f}" for key in list(row)[2:]))
    if options.json:
        facts = {key: getattr(options, key) for key in ("rows", "repeats", "threads")}
        versions = {"torch": torch.__version__, "numpy": np.__version__, "python": sys.version.split()[0]}
        options.json.write_text(json.dumps({**versions, **facts, "results": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
