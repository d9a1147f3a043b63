"""Correlation congruence: a kernel's matrix over the samples of a batch."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from kdcache.errors import UsageError
from kdcache.objectives.relations import rows_together, unit

__all__ = ["cc"]

MAX_ORDER = 100


def cc(
    student: Tensor,
    teacher: Tensor,
    *,
    kernel: Literal["gaussian", "bilinear"] = "gaussian",
    gamma: float = 0.4,
    order: int = 2,
) -> Tensor:
    """|K_s - K_t|_F^2 / B^2, K_ij = k(f_i, f_j) of features divided by their 2-norms: mean over ALL B x B pairs.

    Peng et al. 2019, eq. 7, and its kernels. "bilinear": k(a, b) = a.b. "gaussian": the Taylor series to the given
    order of exp(-gamma |a - b|^2), k(a, b) = exp(-2 gamma) sum over p = 0 .. order of (2 gamma a.b)^p / p!. Features of
    any widths, maps flattened; one of zeros is orthogonal to all others. The length of a row does not matter.
    UsageError for a batch of 1, and unless gamma > 0 and 1 <= order <= 100. "bilinear" does without these two.

    Three others go by this name. RepDistiller and those who took its code: the mean over i of
    sum_d |f_s - f_t|_i,d |f_s - f_t|_i+1,d on embedded features, no kernel and no correlation. torchdistill:
    |K_s - K_t|_F / B^2, the norm not squared, of features not normalised. KD-Zoo: this one, "gaussian" alone.
    """
    if kernel not in ("gaussian", "bilinear"):
        raise UsageError(f'cc: kernel = {kernel!r} is not known; take "gaussian" or "bilinear"')
    if not 0 < gamma < math.inf:
        raise UsageError(f"cc: gamma = {gamma}: it must be a finite number above 0")
    if not 1 <= order <= MAX_ORDER:
        raise UsageError(f"cc: order = {order}: a Taylor series of order 1 to {MAX_ORDER}; 0 is the same for all rows")
    ours, theirs = (_cosines(rows) for rows in rows_together("cc", student, teacher, 2))
    if kernel == "gaussian":
        ours, theirs = _gaussian(ours, gamma, order), _gaussian(theirs, gamma, order)
    return (ours - theirs).square().mean()


def _cosines(rows: Tensor) -> Tensor:
    units = unit(rows)
    return units @ units.T


def _gaussian(cosines: Tensor, gamma: float, order: int) -> Tensor:
    """1 + x (1 + x/2 (1 + x/3 (...))), Horner's scheme, times exp(-2 gamma)."""
    exponent = 2 * gamma * cosines
    series = torch.ones_like(exponent)
    for power in range(order, 0, -1):
        series = 1 + exponent * series / power
    return math.exp(-2 * gamma) * series
