"""What the loaders of a fit may keep in memory, and whether the blocks of a store that is only planned will fit."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np

from kdcache.config import TrainConfig
from kdcache.errors import UsageError
from kdcache.loader.pool import least_slots
from kdcache.store import Plan

__all__ = ["check_memory", "loader_budgets"]


def loader_budgets(train: TrainConfig) -> tuple[int, int]:
    """Bytes for the training rows and for those that early stopping holds out (0 without it)."""
    budget = train.memory_mib << 20
    held = 0 if train.early_stopping is None else budget // 4
    return budget - held, held


def check_memory(plan: Plan, fields: Collection[str], train: TrainConfig) -> None:
    """UsageError where a loader of these fields, with a shuffled order of all the plan's rows, would refuse to open.

    Fields that the plan lacks count nothing.
    """
    width = sum(field.width for field in plan.fields if field.name in fields)
    sizes = np.diff(plan.block_starts)
    slot_rows, least = int(sizes.max()), least_slots(len(sizes), train.lanes)
    budget, _ = loader_budgets(train)
    slots = budget // (slot_rows * width)
    if slots < least:
        needed = -(-least * slot_rows * width * train.memory_mib // budget)
        raise UsageError(
            f"train.memory_mib = {train.memory_mib} holds {slots} blocks of {slot_rows} rows x {width} bytes, and "
            f"{min(train.lanes, len(sizes))} lanes need {least}: raise train.memory_mib to {needed}, or lower "
            "train.lanes or store.block_rows"
        )
