"""Attention transfer: where a network looks, whatever its channels are."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from kdcache.errors import UsageError
from kdcache.objectives.directions import unit
from kdcache.objectives.matching import wide
from kdcache.objectives.meeting import pooled, shared_space

__all__ = ["attention"]


def attention(
    student: Tensor,
    teacher: Tensor,
    *,
    power: float = 2.0,
    paper: bool = False,
    pooling: Literal["attention", "feature"] = "attention",
) -> Tensor:
    """mean((Q_s - Q_t)^2) over rows and positions, Q = vec(A) / |vec(A)|_2, A = mean_c |F_c|^power; 0 without rows.

    AT (Zagoruyko and Komodakis 2017, section 3.1, eq. 2). The mean is that of the authors' code; paper=True is the
    equation's norm |Q_s - Q_t|_2, mean over rows. Student [B, Ds, H, W]. Teacher [B, Dt, H', W'], or its attention
    [B, H', W'] as a store's field with `attention = true` keeps it: A at power 2, without the channels. No adapter:
    widths may differ. Sizes may differ too, the larger is average-pooled along each axis. What is pooled is A, so that
    both kinds of field give the same value; pooling="feature" pools F before the power, as published code does, where
    opposite signs cancel. A map of zeros has Q = 0.
    """
    if not 1 <= power < math.inf:
        raise UsageError(f"attention: power = {power}: give a finite number of 1 or more")
    collapsed = teacher.ndim == 3
    if student.ndim != 4 or teacher.ndim not in (3, 4) or len(student) != len(teacher):
        raise UsageError(
            f"attention: the student's feature is {list(student.shape)} and the teacher's {list(teacher.shape)}; pass "
            "maps [B, D, H, W] of the same rows, the teacher's also as attention [B, H, W]"
        )
    if collapsed and power != 2:
        raise UsageError(
            f"attention: power = {power}, and the store keeps the teacher's attention at power 2: leave power out, or "
            "dump the whole map, without attention = true"
        )
    space = shared_space(student.shape[2:], teacher.shape[-2:])
    if pooling == "feature":
        if collapsed and teacher.shape[1:] != space:
            raise UsageError(
                f'attention: pooling = "feature" cannot make {list(space)} of the attention {list(teacher.shape[1:])} '
                "that the store keeps: leave it out, or dump the whole map, without attention = true"
            )
        student, teacher = pooled(wide(student), space), teacher if collapsed else pooled(wide(teacher), space)
    ours = _attended(_energy(student, power), space)
    theirs = _attended(wide(teacher)[:, None] if collapsed else _energy(teacher, power), space)
    difference = ours - theirs
    if paper:
        norms: Tensor = torch.linalg.vector_norm(difference, dim=1)
        return norms.sum() / max(len(norms), 1)
    return difference.square().sum() / max(difference.numel(), 1)


def _energy(feature: Tensor, power: float) -> Tensor:
    """[B, D, H, W] -> [B, 1, H, W]."""
    feature = wide(feature)
    return (feature.square() if power == 2 else feature.abs().pow(power)).mean(dim=1, keepdim=True)


def _attended(energy: Tensor, space: tuple[int, ...]) -> Tensor:
    """[B, 1, *any] -> Q [B, P] of the space's P positions."""
    return unit(pooled(energy, space).flatten(1), 1)
