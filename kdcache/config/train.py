"""[train]: one fit, of a teacher, a baseline or a student."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from kdcache.config.table import Fraction, Positive, Precision, Seed, Table

__all__ = ["EarlyStopping", "TrainConfig"]


class EarlyStopping(Table):
    """Stop when a metric of the held-out training rows no longer improves."""

    metric: Literal["val_loss", "val_accuracy"] = "val_loss"
    patience: Positive = Field(10, description="evaluations (one an epoch) without improvement")
    restore_best: bool = True


class TrainConfig(Table):
    """One fit: of a teacher, a baseline or a student."""

    epochs: Positive | None = Field(None, description="passes over the rows that the objective can use (default 10)")
    steps: Positive | None = Field(None, description="optimiser steps, instead of epochs")
    batch_size: Positive = 256
    optimizer: Literal["sgd", "adam", "adamw"] = "adam"
    lr: Annotated[float, Field(gt=0)] = 1e-3
    momentum: Fraction = Field(0.9, description="sgd")
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    schedule: Literal["constant", "cosine", "step", "one_cycle", "warmup"] = "constant"
    warmup: Fraction = Field(0.05, description="warmup, one_cycle: share of the steps in which the rate rises")
    milestones: tuple[Fraction, ...] = Field((0.5, 0.75), description="step: shares of the steps where the rate falls")
    gamma: Annotated[float, Field(gt=0, le=1)] = Field(0.1, description="step: the factor by which it falls")
    augment: tuple[Literal["flip", "crop"], ...] = Field(
        (), description="for fits on labels: a store's soft labels are those of the images as they are"
    )
    clip_norm: Annotated[float, Field(gt=0)] | None = None
    accumulate: Positive = Field(1, description="micro-batches summed into one step")
    precision: Precision = "fp32"
    early_stopping: EarlyStopping | None = None
    holdout: Fraction = Field(0.1, description="share of the training rows that early stopping watches")
    seeds: tuple[Seed, ...] = Field((0,), min_length=1)
    lanes: Positive = Field(64, description="sub-streams that the loader mixes; part of the order")
    memory_mib: Positive = Field(1024, description="what the loader may keep in memory")
    checkpoint_seconds: Annotated[float, Field(ge=0)] = Field(30.0, description="0 writes one after every step")

    @model_validator(mode="after")
    def _one_length(self) -> TrainConfig:
        if self.epochs is not None and self.steps is not None:
            raise ValueError("give `epochs` or `steps`, not both")
        if len(set(self.seeds)) != len(self.seeds):
            raise ValueError(f"seeds = {list(self.seeds)} repeats a seed")
        return self
