"""Fits that several tests run, in this process and in others; and a network of one's own to name in a recipe."""

from __future__ import annotations

import math
import multiprocessing
import os
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from torch import nn

from kdcache.config import EarlyStopping, ObjectiveConfig, TrainConfig
from kdcache.errors import Interrupted
from kdcache.student import FitResult, fit

KD = [ObjectiveConfig(name="kd", weight=0.9, temperature=2.0), ObjectiveConfig(name="ce", weight=0.1)]
CE = [ObjectiveConfig(name="ce")]
HINT = [*KD, ObjectiveConfig(name="hint", field="features.hidden", tap="0", weight=0.5)]
MLP_HINT = [*KD, ObjectiveConfig(name="hint", field="features.hidden", tap="layers.0")]


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


def in_bf16(store: Path, out: Path, checkpoint_seconds: float) -> FitResult:
    """Mixed precision, on a CPU whose newer bf16 instructions a virtual machine may announce and not run."""
    os.environ["ONEDNN_MAX_CPU_ISA"] = "AVX2"
    return small(store, out, epochs=2, precision="bf16", checkpoint_seconds=checkpoint_seconds)


RUNS = {"augmented": augmented, "with_hint": with_hint, "in_bf16": in_bf16}


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
