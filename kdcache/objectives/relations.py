"""What the relational losses share: rows that are compared with each other, and rows of length 1."""

from __future__ import annotations

import torch
from torch import Tensor

from kdcache.errors import UsageError
from kdcache.objectives.matching import wide

__all__ = ["check_together", "rows_together", "unit"]

_NUMBERS = {2: "two", 3: "three"}


def rows_together(name: str, student: Tensor, teacher: Tensor, least: int) -> tuple[Tensor, Tensor]:
    """Both features as float32 rows [B, everything]: vectors [B, D] as they are, maps [B, D, H, W] flattened.

    UsageError naming the loss `name` unless both have B rows, at least `least`; the widths may differ.
    """
    for owner, feature in (("student", student), ("teacher", teacher)):
        if feature.ndim < 2:
            raise UsageError(
                f"{name}: the {owner}'s feature is {list(feature.shape)}; it compares rows [B, D] or maps "
                "[B, D, H, W]: choose another tap or field"
            )
    if len(student) != len(teacher):
        raise UsageError(
            f"{name}: the student's feature has {len(student)} rows and the teacher's {len(teacher)}: "
            "pass those of the same samples"
        )
    check_together(name, len(student), least)
    return wide(student).flatten(1), wide(teacher).flatten(1)


def check_together(name: str, rows: int, least: int) -> None:
    """UsageError unless a batch has as many rows as there must be for them to have relations."""
    if rows < least:
        raise UsageError(
            f"{name}: it compares the rows of a batch with each other and needs at least {_NUMBERS[least]} rows, and "
            f"this batch has {rows}: raise train.batch_size, or lower train.accumulate"
        )


def unit(vectors: Tensor) -> Tensor:
    """Divided by their 2-norms along the last axis; one of zeros stays so and passes no gradient, instead of 0/0."""
    norms = torch.linalg.vector_norm(vectors, dim=-1, keepdim=True)
    nothing = norms == 0
    units: Tensor = vectors.masked_fill(nothing, 0.0) / norms.masked_fill(nothing, 1.0)
    return units
