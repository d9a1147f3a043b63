"""Cases of the losses on values: loops over rows and values, float64."""

from __future__ import annotations

import math
from typing import Any

import torch
from objective_case import Case
from torch import Tensor

from kdcache.objectives.regression import huber, l1, mse

__all__ = ["CASES"]

Inputs = tuple[list[Any], list[Any]]


def values(generator: torch.Generator, rows: int) -> Inputs:
    return [torch.randn(rows, 6, generator=generator)], [torch.randn(rows, 6, generator=generator)]


def partly_known(generator: torch.Generator, rows: int) -> Inputs:
    """About a third of the values are not known, another third off by more than 1; other shapes of the same size."""
    student, (target,) = values(generator, rows)
    target = 3 * target
    target[torch.rand(rows, 6, generator=generator) < 0.3] = math.nan
    target[:, 0] = 1.0
    return student, [target.reshape(rows, 2, 3)]


def pixels(generator: torch.Generator, rows: int) -> Inputs:
    picture = torch.randint(4, (rows, 1, 2, 3), generator=generator, dtype=torch.uint8)
    return [2 * torch.randn(rows, 6, generator=generator)], [picture]


def reference(kind: str) -> Any:
    def loop(student: Tensor, target: Tensor, *, delta: float = 1.0) -> Tensor:
        total, count = student.new_zeros(()), 0
        for ours, theirs in zip(student, target.flatten(1).tolist(), strict=True):
            for value, wanted in zip(ours, theirs, strict=True):
                if math.isnan(wanted):
                    continue
                off = value - wanted
                size = off.abs()
                inside = off * off / 2 if size <= delta else delta * (size - delta / 2)
                total = total + {"mse": off * off, "l1": size, "huber": inside}[kind]
                count += 1
        return total / max(count, 1)

    return loop


CASES = [
    Case("mse", mse, reference("mse"), values),
    Case("mse_partly_known", mse, reference("mse"), partly_known),
    Case("mse_pixels", mse, reference("mse"), pixels),
    Case("l1", l1, reference("l1"), values),
    Case("l1_partly_known", l1, reference("l1"), partly_known),
    Case("huber", huber, reference("huber"), values),
    Case("huber_narrow", huber, reference("huber"), partly_known, {"delta": 0.25}),
]
