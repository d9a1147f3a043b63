"""Fits that several tests run, in this process and in others; and a network of one's own to name in a recipe."""

from __future__ import annotations

import math
import multiprocessing
import os
import signal
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kdcache.config import EarlyStopping, ObjectiveConfig, TrainConfig
from kdcache.errors import Interrupted
from kdcache.metrics import Judged
from kdcache.student import FitResult, Progress, fit

KD = [ObjectiveConfig(name="kd", weight=0.9, temperature=2.0), ObjectiveConfig(name="ce", weight=0.1)]
CE = [ObjectiveConfig(name="ce")]
HINT = [*KD, ObjectiveConfig(name="hint", field="features.hidden", tap="0", weight=0.5)]
MLP_HINT = [*KD, ObjectiveConfig(name="hint", field="features.hidden", tap="layers.0")]
AGAINST = ObjectiveConfig.model_validate(
    {"name": "adversarial", "weight": 0.3, "form": "hinge", "hidden": 16, "lr": 0.01}
)
BANKS = ObjectiveConfig.model_validate(
    {"name": "crd", "weight": 0.02, "field": "features.hidden", "tap": "0", "negatives": 40, "width": 8}
)


def dropout_net(input_shape: tuple[int, ...], num_classes: int, hidden: int = 24) -> nn.Module:
    """Linear, batch norm, ReLU, dropout, linear."""
    return nn.Sequential(
        nn.Linear(math.prod(input_shape), hidden),
        nn.BatchNorm1d(hidden),
        nn.ReLU(),
        nn.Dropout(0.3),
        nn.Linear(hidden, num_classes),
    )


def eleven_outputs(input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
    """A network that insists on a width of its own."""
    return nn.Sequential(nn.Flatten(), nn.Linear(math.prod(input_shape), 11))


def no_parameters(input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
    """A network that has nothing to learn with."""
    return nn.Sequential(nn.Flatten(), nn.AdaptiveAvgPool1d(num_classes))


class Told(nn.Module):
    """Sees an image and a fact; says the class, and scores."""

    def __init__(self, shape: tuple[int, ...], classes: int, fact: int) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(math.prod(shape), 24), nn.ReLU())
        self.head, self.scores = nn.Linear(24 + fact, classes), nn.Linear(24, 3)

    def forward(self, x: Tensor, fact: Tensor) -> dict[str, Tensor]:
        seen = self.body(x)
        return {"logits": self.head(torch.cat([seen, fact], 1)), "scores": self.scores(seen)}


def told(input_shape: tuple[int, ...], num_classes: int, fact: int = 4) -> nn.Module:
    return Told(input_shape, num_classes, fact)


def confidence(judged: Judged) -> dict[str, float]:
    """A metric of one's own: the mean of the largest probability."""
    return {"confidence": float(judged.outputs["logits"].softmax(1).amax(1).mean())}


class StopAt(Progress):
    """Asks this process to stop after a step, as Ctrl-C does."""

    def __init__(self, step: int) -> None:
        self.step = step

    def stepped(self, step: int) -> None:
        if step == self.step:
            os.kill(os.getpid(), signal.SIGINT)


def small(store: Path, out: Path, **change: Any) -> FitResult:
    """A few steps of an MLP with kd and ce; `change` are keys of [train], or of `fit`."""
    options = {key: change.pop(key) for key in list(change) if key == "steps" or key not in TrainConfig.model_fields}
    train = TrainConfig.model_validate({"epochs": 3, "batch_size": 64, "checkpoint_seconds": 30.0} | change)
    options = {"objective": KD, "seed": 0, "identity": {}, "model": "zoo:mlp", "args": {"hidden": [32]}} | options
    return fit(options.pop("model"), options.pop("args"), [store], out, train=train, **options)


def augmented(store: Path, out: Path, checkpoint_seconds: float) -> FitResult:
    """Augmentation, sparse targets, early stopping, Adam, cosine."""
    return small(
        store,
        out,
        epochs=6,
        augment=("crop", "flip"),
        schedule="cosine",
        early_stopping=EarlyStopping(patience=4),
        checkpoint_seconds=checkpoint_seconds,
    )


def with_hint(store: Path, out: Path, checkpoint_seconds: float) -> FitResult:
    """Dropout, batch norm, an adapter, momentum, clipping, accumulation; float inputs, width and batch size odd."""
    return small(
        store,
        out,
        epochs=20,
        batch_size=33,
        model="student_runs:dropout_net",
        args={},
        objective=HINT,
        optimizer="sgd",
        lr=0.02,
        clip_norm=1.0,
        accumulate=2,
        schedule="one_cycle",
        checkpoint_seconds=checkpoint_seconds,
    )


def contested(store: Path, out: Path, checkpoint_seconds: float) -> FitResult:
    """A discriminator with an optimiser of its own, and banks that remember every row."""
    return small(
        store,
        out,
        epochs=16,
        batch_size=33,
        model="student_runs:dropout_net",
        args={},
        objective=[*KD, AGAINST, BANKS],
        schedule="cosine",
        checkpoint_seconds=checkpoint_seconds,
    )


def in_bf16(store: Path, out: Path, checkpoint_seconds: float) -> FitResult:
    """Mixed precision, on a CPU whose newer bf16 instructions a virtual machine may announce and not run."""
    os.environ["ONEDNN_MAX_CPU_ISA"] = "AVX2"
    return small(store, out, epochs=2, precision="bf16", checkpoint_seconds=checkpoint_seconds)


RUNS = {"augmented": augmented, "with_hint": with_hint, "contested": contested, "in_bf16": in_bf16}


# Forked from a server that has imported the heavy libraries once: a real process each, started in no time.
_PROCESSES = multiprocessing.get_context("forkserver")
_PROCESSES.set_forkserver_preload(["kdcache.student.fit", "accelerate", "safetensors.torch", "tensorboardX"])


def begin(name: str, store: Path, out: Path, checkpoint_seconds: float) -> BaseProcess:
    """Start one of `RUNS` in a process of its own."""
    process = _PROCESSES.Process(target=run, args=(name, store, out, checkpoint_seconds))
    process.start()
    return process


def run(name: str, store: Path, out: Path, checkpoint_seconds: float) -> None:
    """What a process of its own runs; exits as the command line would."""
    try:
        RUNS[name](store, out, checkpoint_seconds)
    except Interrupted as stopped:
        raise SystemExit(stopped.exit_code) from stopped
