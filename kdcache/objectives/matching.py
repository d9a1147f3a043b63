"""What every loss on logits asks of its operands, and the mean over rows that it gives back."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from kdcache.codecs import Targets
from kdcache.errors import UsageError

__all__ = ["check_label", "check_rows", "check_temperature", "check_width", "row_mean", "wide"]


def wide(values: Tensor) -> Tensor:
    """In the type that losses are computed in: float64 stays, everything else becomes float32."""
    return values if values.dtype == torch.float64 else values.float()


def row_mean(values: Tensor) -> Tensor:
    """The sum over everything, divided by the rows; 0 for a batch without rows."""
    return values.sum() / max(len(values), 1)


def check_temperature(temperature: float) -> None:
    """UsageError unless 0 < T < inf."""
    if not 0 < temperature < math.inf:
        raise UsageError(f"temperature = {temperature}: it must be a finite number above 0")


def check_width(student: Tensor) -> int:
    """C of [B, C]; UsageError for a tensor of another rank."""
    if student.ndim != 2:
        raise UsageError(f"the student's outputs are {list(student.shape)}; a loss on logits takes [rows, classes]")
    return student.shape[1]


def check_rows(student: Tensor, targets: Targets) -> None:
    """UsageError unless both are of as many rows and classes."""
    found, classes = tuple(targets.shape), check_width(student)
    if len(found) != 2 or found[0] != len(student):
        raise UsageError(
            f"the student's outputs are {list(student.shape)} and the targets {list(found)}: "
            "pass the logits of the same rows"
        )
    if found[1] != classes:
        raise UsageError(
            f"the student gives {classes} outputs, the store's logits have {found[1]} classes; "
            f"set the student's number of outputs to {found[1]}"
        )


def check_label(name: str, student: Tensor, label: Tensor) -> Tensor:
    """The label as int64 [B]; UsageError naming the loss `name` unless it is int32 or int64 [B], each -1 to C - 1."""
    classes = check_width(student)
    if label.shape != student.shape[:1] or label.dtype not in (torch.int32, torch.int64):
        raise UsageError(
            f"{name}: labels are {label.dtype} {list(label.shape)}, and {len(student)} rows of the student "
            f"need int64 [{len(student)}]: pass the batch's `label`"
        )
    # On an accelerator the check would wait for the device at every step; sources and stores check their labels too.
    if label.device.type == "cpu" and bool(((label < -1) | (label >= classes)).any()):
        raise UsageError(
            f"{name}: labels run from {int(label.min())} to {int(label.max())}, and the student's {classes} "
            f"outputs take 0 to {classes - 1}, or -1 for none: set the student's number of outputs"
        )
    return label.long()
