"""Fits that several tests run, in this process and in others; and a network of one's own to name in a recipe."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from torch import nn

from kdcache.config import EarlyStopping, ObjectiveConfig, TrainConfig
from kdcache.errors import Interrupted
from kdcache.student import FitResult, fit

KD = [ObjectiveConfig(name="kd", weight=0.9, temperature=2.0), ObjectiveConfig(name="ce", weight=0.1)]
CE = [ObjectiveConfig(name="ce")]
HINT = [*KD, ObjectiveConfig(name="hint", field="features.hidden", tap="0", weight=0.5)]


def dropout_net(input_shape: tuple[int, ...], num_classes: int, hidden: int = 24) -> nn.Module:
    """Linear, batch norm, ReLU, dropout, linear."""
    return nn.Sequential(nn.Linear(math.prod(input_shape), hidden), nn.BatchNorm1d(hidden), nn.ReLU(), nn.Dropout(0.3),
                         nn.Linear(hidden, num_classes))


def eleven_outputs(input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
    """A network that insists on a width of its own."""
    return nn.Sequential(nn.Flatten(), nn.Linear(math.prod(input_shape), 11))


def small(store: Path, out: Path, **change: Any) -> FitResult:
    """A few steps of an MLP with kd and ce; `change` are keys of [train], or of `fit`."""
    options = {key: change.pop(key) for key in list(change) if key not in TrainConfig.model_fields}
    train = TrainConfig.model_validate({"epochs": 3, "batch_size": 64, "checkpoint_seconds": 0.0} | change)
    options = {"objective": KD, "seed": 0, "identity": {}, "model": "zoo:mlp", "args": {"hidden": [32]}} | options
    return fit(options.pop("model"), options.pop("args"), [store], out, train=train, **options)


def augmented(store: Path, out: Path, checkpoint_seconds: float) -> FitResult:
    """Augmentation, sparse targets, early stopping, Adam, cosine."""
    return small(store, out, epochs=6, augment=("crop", "flip"), schedule="cosine", early_stopping=EarlyStopping(patience=4),
                 checkpoint_seconds=checkpoint_seconds)


def with_hint(store: Path, out: Path, checkpoint_seconds: float) -> FitResult:
    """Dropout, batch norm, an adapter, momentum, clipping, accumulation, float inputs of an odd width and batch size."""
    return small(store, out, epochs=30, batch_size=33, model="student_runs:dropout_net", args={}, objective=HINT,
                 optimizer="sgd", lr=0.02, clip_norm=1.0, accumulate=2, schedule="one_cycle",
                 checkpoint_seconds=checkpoint_seconds)


RUNS = {"augmented": augmented, "with_hint": with_hint}


def run(name: str, store: Path, out: Path, checkpoint_seconds: float) -> None:
    """What a process of its own runs; exits as the command line would."""
    try:
        RUNS[name](store, out, checkpoint_seconds)
    except Interrupted as stopped:
        raise SystemExit(stopped.exit_code) from stopped
