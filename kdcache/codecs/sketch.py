"""The numbers that `SparseLogits` keeps of a row's tail, taken from all logits in few passes over them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["sketch"]


def sketch(values: Tensor, indices: Tensor, temperatures: Sequence[float] | None) -> tuple[Tensor, Tensor | None]:
    """Log-probabilities at T = 1 of the kept classes, float32 [n, k], and the tail's numbers, float32 [n, S].

    values float32 [n, C]; indices int64 [n, k], the largest first; the tail is the C - k others, None for none. Its
    numbers are its log-sum-exp at each of `temperatures` (ascending from 1); or, without these, mean, variance and
    log-sum-exp at T = 1. All relative to the row's log-partition.
    """
    classes, k = values.shape[1], indices.shape[1]
    kept = values.gather(1, indices)
    best = kept[:, :1].clone()
    kept -= best  # from here on relative to the largest, so that no sum overflows
    if k == classes:
        return kept - kept.logsumexp(1, keepdim=True), None
    rest = values.scatter(1, indices, -torch.inf)
    highest = rest.amax(1, keepdim=True)
    rest -= highest
    logs = _log_sums(rest, (1.0,) if temperatures is None else temperatures)
    below = highest - best
    log_z = torch.logaddexp(kept.logsumexp(1, keepdim=True), below + logs[:, :1])
    if temperatures is not None:
        scale = torch.tensor(temperatures, device=values.device)
        return kept - log_z, logs + (below - log_z) / scale
    log_p = (values - best).scatter(1, indices, 0.0)
    mean = log_p.sum(1, keepdim=True) / (classes - k)
    variance = (log_p - mean).scatter(1, indices, 0.0).square().sum(1, keepdim=True) / (classes - k)
    return kept - log_z, torch.cat([mean - log_z, variance, below + logs - log_z], dim=1)


def _log_sums(rest: Tensor, temperatures: Sequence[float]) -> Tensor:
    """log sum exp(rest / T), [n, S], of [n, C] that are at most 0, with a 0 in each row."""
    sums: list[Tensor] = []
    above, powers = 0.0, rest
    for temperature in reversed(temperatures):
        if above == 2 * temperature:  # twice as cheap as another exponential
            powers.square_()
        else:
            powers = (rest / temperature).exp_()
        above = temperature
        # torch adds a single row in another order where it has several threads; a row's bytes must not depend on that.
        pair = powers.expand(2, -1) if len(powers) == 1 else powers
        sums.append(pair.sum(1)[: len(powers)].log_())
    return torch.stack(sums[::-1], dim=1)
