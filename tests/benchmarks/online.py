"""An epoch with the teacher in the loop against one from its store, for a small and a large teacher.

    .venv/bin/python tests/benchmarks/online.py [--rows 1024] [--epochs 3] [--threads N] [--teachers resnet20 resnet110]

CIFAR-10, student zoo:resnet8, batch 128, kd + ce. `online` is a bare loop in plain torch: the frozen teacher as a dump
runs it (evaluation and inference mode, channels last), then the student's step, rows in memory. `offline` is `fit` as
it is, with its loader, metrics and checkpoints, from a store of dense fp16 logits. Both start anew for each teacher and
take the same rows in the same order; the first epoch, which warms up and verifies blocks, is not counted. Medians of
the others. `dump` is the whole call that makes the store, once; `pays after` is the epochs, of all students together,
after which it is won back. Teachers are not trained: their weights have no part in the time.
"""

from __future__ import annotations

import argparse
import functools
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "student"))

import torch
import torch.nn.functional as F
from online_loop import Loss, batches_of, online
from train_overhead import Clock

from kdcache.config import FieldConfig, ObjectiveConfig, Recipe, SourceConfig, TeacherConfig, TrainConfig
from kdcache.models import InputSpec, WeightsInfo, build_model, save_weights
from kdcache.sources import open_source
from kdcache.student import fit
from kdcache.teacher import dump

BATCH, TEMPERATURE = 128, 4.0
OBJECTIVE = [ObjectiveConfig(name="kd", weight=0.9, temperature=TEMPERATURE), ObjectiveConfig(name="ce", weight=0.1)]
STUDENT = "zoo:resnet8"


def plain(student: object, teacher: object, label: torch.Tensor, layers: object) -> torch.Tensor:
    """kd + ce as in any training script."""
    ours, theirs = student["logits"] / TEMPERATURE, teacher["logits"] / TEMPERATURE  # type: ignore[index]
    soft = F.kl_div(F.log_softmax(ours, dim=1), F.softmax(theirs, dim=1), reduction="batchmean")
    return 0.9 * TEMPERATURE**2 * soft + 0.1 * F.cross_entropy(student["logits"], label)  # type: ignore[index]


def untrained(model: str, source: SourceConfig, folder: Path) -> tuple[Path, int]:
    """A weights file, and how many parameters it has. Batch norm has seen a few rows, so that the logits are finite."""
    opened = open_source(source)
    array = opened.arrays["input"]
    torch.manual_seed(0)
    network = build_model(f"zoo:{model}", {}, input=array, outputs=10)
    info = WeightsInfo(f"zoo:{model}", {}, array, 10, InputSpec((125.0, 123.0, 114.0), (63.0, 62.0, 67.0)))
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = None  # the mean of all batches so far
    with torch.no_grad():
        for ids in opened.ids()[: 2 * BATCH].reshape(2, BATCH):
            network.train()(info.input_spec.apply(torch.from_numpy(opened.read(ids)["input"])))
    save_weights(folder / f"{model}.safetensors", network, info)
    return folder / f"{model}.safetensors", sum(parameter.numel() for parameter in network.parameters())


def measure(model: str, source: SourceConfig, train: TrainConfig, folder: Path) -> tuple[int, float, float, float]:
    """Parameters; seconds of the dump, of an epoch online, of an epoch offline."""
    weights, parameters = untrained(model, source, folder)
    teacher = TeacherConfig(model=f"zoo:{model}", weights=weights, batch_size=BATCH)
    recipe = Recipe(source=source, teacher=teacher, fields={"logits": FieldConfig(codec="dense", dtype="float16")})
    store = folder / model
    began = time.perf_counter()
    dump(recipe, store)
    dumped = time.perf_counter() - began
    assert train.epochs is not None
    batches = [places for places in batches_of(store, train, 0, train.epochs) if 2 * len(places) >= BATCH]
    epoch_steps = len(batches) // train.epochs
    live, stored, taken = Clock(epoch_steps), Clock(epoch_steps), 0

    def stepped() -> None:
        nonlocal taken
        taken += 1
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        live.stepped(taken)

    live.started("", 0, 0, 0)
    adam = functools.partial(torch.optim.Adam, lr=train.lr, fused=True)
    loss: Loss = plain
    online(recipe, iter(batches), (STUDENT, {}), adam, loss, 0, stepped=stepped)
    fit(STUDENT, {}, [store], folder / f"{model}-run", objective=OBJECTIVE, train=train, seed=0, identity={},
        progress=stored)  # fmt: skip
    seconds = [statistics.median(wall for wall, _ in clock.times[1:]) for clock in (live, stored)]
    return parameters, dumped, *seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1024)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--teachers", nargs="+", default=["resnet20", "resnet110"])
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    source = SourceConfig(dataset="cifar-10", rows=options.rows)
    train = TrainConfig(epochs=options.epochs, batch_size=BATCH)
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{options.threads} threads"
    print(
        f"{options.rows} rows of CIFAR-10, student {STUDENT}, {options.epochs} epochs, {device}, "
        f"torch {torch.__version__}"
    )
    print(
        f"{'teacher':12}{'parameters':>12}{'dump s':>9}{'online s':>10}{'offline s':>11}{'faster':>9}{'pays after':>12}"
    )
    with tempfile.TemporaryDirectory() as name:
        for model in options.teachers:
            parameters, dumped, live, stored = measure(model, source, train, Path(name))
            pays = f"{dumped / (live - stored):.1f} epochs" if live > stored else "never"
            print(f"{model:12}{parameters:12,}{dumped:9.2f}{live:10.2f}{stored:11.2f}{live / stored:8.1f}x{pays:>12}")


if __name__ == "__main__":
    main()
