"""Which rows a fit uses, which of them early stopping watches, and how many steps that makes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from kdcache.config import ObjectiveConfig, TrainConfig
from kdcache.errors import UsageError
from kdcache.keyed import keyed_hash
from kdcache.objectives import compose
from kdcache.student.data import Data, open_data

__all__ = ["Rows", "choose_rows", "evaluation_interval", "planned_steps", "remainder", "rows_used", "steps_per_epoch"]

DEFAULT_EPOCHS = 10


@dataclass(frozen=True, eq=False)
class Rows:
    """Two disjoint masks over a store's rows, bool [N]; `held` is None without early stopping."""

    train: NDArray[np.bool_]
    held: NDArray[np.bool_] | None


def choose_rows(data: Data, train: TrainConfig, labels_only: bool) -> Rows:
    """The labelled rows if the objective reads labels only, else all; less the part held out for early stopping.

    Held out are the rows whose id's keyed hash falls below `holdout` * 2^64. The key is one constant, so every seed
    has the same ones, and a baseline's are those of the student's that carry a label.
    """
    use = np.ones(data.rows, dtype=bool) if not labels_only else data.labelled
    if not use.any():
        raise UsageError(
            f"{data.place}: none of its {data.rows} rows has a label, and the objective reads labels "
            "only; use a labelled store, or an objective on the teacher's outputs such as kd"
        )
    if train.early_stopping is None:
        return Rows(use, None)
    if train.holdout == 0:
        raise UsageError(
            "early_stopping watches a held-out part of the training rows, and holdout = 0; "
            "set train.holdout, for instance 0.1"
        )
    below = keyed_hash("kdcache held-out rows", data.ids) < np.uint64(int(train.holdout * 2.0**64))
    kept, held = use & ~below, use & below
    if not held.any() or not kept.any():
        raise UsageError(
            f"{data.place}: holdout = {train.holdout} of {int(use.sum())} rows holds out "
            f"{int(held.sum())}; change train.holdout or leave early_stopping out"
        )
    if train.early_stopping.metric == "val_accuracy" and not data.labelled[held].any():
        raise UsageError(
            f"{data.place}: none of the {int(held.sum())} held-out rows has a label, and early_stopping "
            "watches val_accuracy; watch val_loss"
        )
    return Rows(kept, held)


def rows_used(stores: Sequence[Path], objective: Sequence[ObjectiveConfig], train: TrainConfig) -> int:
    """How many rows of the stores a fit with this objective trains on, the held-out part not counted."""
    with open_data(stores) as data:
        seen, facts = data.seen("cycle" if data.views else None)
        labels_only = compose(objective, {**data.fields, **seen}, data.outputs, facts).needs_labels_only
        return int(choose_rows(data, train, labels_only).train.sum())


def planned_steps(train: TrainConfig, rows: int) -> int:
    """Optimiser steps of a fit on `rows` rows: `train.steps`, or its epochs (default 10) times the steps of one."""
    return train.steps or (train.epochs or DEFAULT_EPOCHS) * steps_per_epoch(rows, train.batch_size)


def evaluation_interval(train: TrainConfig, steps: int, epoch_steps: int) -> int:
    """Steps between two looks at the held-out rows, which count as one epoch in the metrics.

    A fit given in epochs looks `train.epochs` times, also where `steps` overrides its length, so that a baseline looks
    as often as its student. One given in steps looks once a pass, and at most about 100 times.
    """
    if train.steps is not None:
        return max(epoch_steps, -(-steps // 100))
    return max(1, round(steps / (train.epochs or DEFAULT_EPOCHS)))


def remainder(rows: int, batch_size: int) -> Literal["keep", "drop"]:
    """What becomes of an epoch's last, short batch: dropped if it is shorter than half a batch.

    A batch of very few rows gives a step of full length and mostly noise, batch norm cannot take one of a single row,
    and not every process would get a part of it. Its rows change with the epoch, so none is left out for good.
    """
    return "drop" if rows > batch_size and 2 * (rows % batch_size) < batch_size else "keep"


def steps_per_epoch(rows: int, batch_size: int) -> int:
    """Batches of one pass over `rows` rows."""
    return rows // batch_size if remainder(rows, batch_size) == "drop" else -(-rows // batch_size)
