"""The largest classes as they are, the rest by systematic draws of one weight: unbiased, and the least varying.

The head is the h = max(1, k // 10) largest classes (none if k = 1). With m = k - h, the mass R of the rest is cut in m
equal shares tau = R / m. One keyed uniform number u of the row marks the points (u + j) tau, j = 0, ..., m - 1, of the
running sum of the rest's p by class id, and a class gets weight tau for each mark in its stretch. So a class of p < tau
is there with probability p / tau and then weighs tau (threshold sampling, Duffield, Lund and Thorup 2007; systematic
draws, Madow 1949); one of p >= tau is always there, with floor or ceil(p / tau) marks. E[weight] = p, every row has m
marks, and E||p^ - p||^2 = tau^2 sum f (1 - f) over the rest, f the fraction of p / tau: at most R tau.

Head values are v_j = p_j / (1 - sum of p of the head classes of smaller id), rounded up or down at random by keyed
draws, so that their mean is exact. Then p_j = v_j prod_{i<j} (1 - v_i) and R = prod (1 - v_i): whatever the rounding,
nothing is negative, all sums to 1 and tau follows; and as the roundings are independent, the means stay exact. In
uint8 level c is sin^2(pi c / 510), which spreads the variance of the rounding evenly; float16 is for many draws a row.
Ids are Elias-Fano rows (`ascending`): 3 bits each for a third of 100 classes, 12 for 32 of 32,768.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kdcache.arrays import Array
from kdcache.codecs.ascending import ascending_bytes, check_ascending, merged, pack_ascending, unpack_ascending
from kdcache.codecs.codec import check_columns, known_keys
from kdcache.codecs.draws import draws
from kdcache.codecs.estimate import by_rows, drawn, masses, of_a_draw
from kdcache.codecs.largest import largest
from kdcache.codecs.sampled_logits import SampledLogits
from kdcache.errors import StoreDamaged, UsageError

__all__ = ["NEEDS_PILOT", "check", "columns", "configure", "decode", "encode", "fit"]

NEEDS_PILOT = False


def configure(configuration: Mapping[str, Any], array: Array) -> dict[str, Any]:
    """{"k": 1 to C, "dtype": of head values, "uint8" (default) or "float16", "temperature": 1, "seed": 0}."""
    known_keys("threshold", configuration, ("dtype", "k", "seed", "temperature"))
    found = of_a_draw("threshold", configuration, array, "k")
    classes = array.shape[-1]
    if found["k"] > classes:
        raise UsageError(
            f"threshold: k = {found['k']} is more than the {classes} classes of the teacher; set k to at most {classes}"
        )
    dtype = configuration.get("dtype", "uint8")
    if dtype not in ("float16", "uint8"):
        raise UsageError(f"threshold: dtype = {dtype!r}; take uint8 or float16")
    return {**found, "dtype": dtype}


def columns(array: Array, configuration: Mapping[str, Any]) -> dict[str, Array]:
    """Classes of the head, their values, and the classes at the marks; no head if k = 1."""
    *lead, classes = array.shape
    head, marks = _cut(configuration["k"])
    found = {"tail": Array("uint8", (*lead, ascending_bytes(marks, classes)))}
    if head:
        found["head"] = Array("uint8", (*lead, ascending_bytes(head, classes)))
        found["values"] = Array(configuration["dtype"], (*lead, head))
    return found


def fit(pilot: Tensor, configuration: Mapping[str, Any]) -> dict[str, np.ndarray[Any, Any]]:
    return {}


def encode(
    values: Tensor, configuration: Mapping[str, Any], tables: Mapping[str, Tensor], keys: Tensor | None = None
) -> dict[str, Tensor]:
    """Of logits [..., C] by the rows' keys int64 [...]: draw 0 is u, draw j rounds the j-th head value."""
    head, marks = _cut(configuration["k"])
    steps = torch.arange(marks, device=values.device)

    def rows(chunk: Tensor, numbers: Tensor) -> dict[str, Tensor]:
        uniform = draws(configuration["seed"], numbers, head + 1)
        weights = masses(chunk, configuration["temperature"])
        found = {}
        if head:
            kept = largest(chunk, head).sort(1).values
            mass = weights.gather(1, kept)
            left = weights.sum(1, keepdim=True) - mass.cumsum(1) + mass
            found["head"] = pack_ascending(kept, chunk.shape[1])
            found["values"] = _rounded(mass / left.clamp(min=1), uniform[:, 1:], configuration["dtype"])
            weights.scatter_(1, kept, 0.0)
        found["tail"] = pack_ascending(drawn(weights, (uniform[:, :1] + steps) / marks), chunk.shape[1])
        return found

    return by_rows(values, keys, rows)


def check(
    stored: Mapping[str, Tensor], array: Array, configuration: Mapping[str, Any], tables: Mapping[str, Tensor]
) -> None:
    """Above all that every id is a class: a gather on an accelerator would not say so."""
    check_columns(stored, columns(array, configuration))
    head, marks = _cut(configuration["k"])
    check_ascending("tail", stored["tail"], marks, array.shape[-1])
    if head:
        check_ascending("head", stored["head"], head, array.shape[-1], distinct=True)
        values = _levels(stored["values"])
        if not ((values >= 0) & (values <= 1)).all():
            raise StoreDamaged("column 'values' holds a share of mass outside 0 to 1; run `kdcache verify`")


def decode(
    stored: Mapping[str, Tensor], array: Array, configuration: Mapping[str, Any], tables: Mapping[str, Tensor]
) -> SampledLogits:
    """Head, then marked classes, each once; slots left over have weight 0."""
    if stored["tail"].device.type == "cpu":
        check(stored, array, configuration, tables)
    head, marks = _cut(configuration["k"])
    classes, times = merged(unpack_ascending(stored["tail"], marks, array.shape[-1]))
    weights = times.double() / marks
    if head:
        share = _levels(stored["values"])
        left = (1 - share).cumprod(-1)
        before = torch.cat([torch.ones_like(left[..., :1]), left[..., :-1]], -1)
        classes = torch.cat([unpack_ascending(stored["head"], head, array.shape[-1]), classes], -1)
        weights = torch.cat([share * before, weights * left[..., -1:]], -1)
    return SampledLogits(classes, weights.float(), configuration["temperature"], array.shape[-1])


def _cut(k: int) -> tuple[int, int]:
    """Classes of the head, and marks in the rest."""
    head = min(max(1, k // 10), k - 1)
    return head, k - head


def _levels(codes: Tensor) -> Tensor:
    """What stored head values stand for, float64."""
    return codes.double() if codes.dtype != torch.uint8 else codes.double().mul_(math.pi / 510).sin_().square_()


def _rounded(share: Tensor, uniform: Tensor, dtype: str) -> Tensor:
    """Each of float64 [n, h] in [0, 1] to the level below or above, with the probabilities that keep its mean."""
    if dtype == "uint8":
        below = (share.sqrt().asin_() * (510 / math.pi)).floor_().clamp_(0, 254)
        below -= (_levels(below.to(torch.uint8)) > share).double()  # the arcsine is not exact
        low, high = _levels(below.to(torch.uint8)), _levels((below + 1).to(torch.uint8))
        return (below + (uniform * (high - low) < share - low)).to(torch.uint8)
    near = share.to(torch.float16).view(torch.int16)
    below = (near - (near.view(torch.float16).double() > share).to(torch.int16)).clamp_(max=0x3BFF)
    low, high = below.view(torch.float16).double(), (below + 1).view(torch.float16).double()
    return (below + (uniform * (high - low) < share - low).to(torch.int16)).view(torch.float16)
