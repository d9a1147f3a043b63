"""What the codecs of random estimates share: their configuration, the classes' masses, and drawing from them.

Masses are whole multiples of 2^-52 of a row's probability, held in float64. Their sums are whole numbers below 2^53, so
they are exact and do not depend on the order in which a device adds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from kdcache.arrays import Array
from kdcache.errors import UsageError

__all__ = ["by_rows", "drawn", "masses", "of_a_draw"]

CHUNK = 1 << 21  # values that are worked on at once
COOLEST, HOTTEST = 0.05, 1000.0


def of_a_draw(codec: str, configuration: Mapping[str, Any], array: Array, count: str) -> dict[str, Any]:
    """`count`, `temperature` and `seed` checked and completed; UsageError."""
    if len(array.shape) not in (1, 2) or not array.dtype.startswith(("float", "bfloat")):
        raise UsageError(
            f"{codec} is for logits, [C] or [P, C] of floats, and this field is {array}; use the dense codec"
        )
    number = configuration.get(count)
    if not isinstance(number, int) or isinstance(number, bool) or number < 1:
        raise UsageError(f"{codec}: {count} = {number!r}; give a whole number of at least 1")
    temperature = configuration.get("temperature", 1.0)
    if (
        isinstance(temperature, bool)
        or not isinstance(temperature, int | float)
        or not COOLEST <= temperature <= HOTTEST
    ):
        raise UsageError(
            f"{codec}: temperature = {temperature!r}; give the one that students will use, {COOLEST:g} to {HOTTEST:g}"
        )
    seed = configuration.get("seed", 0)
    if not isinstance(seed, int) or isinstance(seed, bool) or not 0 <= seed < 1 << 63:
        raise UsageError(f"{codec}: seed = {seed!r}; give a whole number from 0 to 2^63 - 1")
    return {count: number, "temperature": float(temperature), "seed": seed}


def by_rows(
    values: Tensor, keys: Tensor | None, encode: Callable[[Tensor, Tensor], dict[str, Tensor]]
) -> dict[str, Tensor]:
    """`encode` of rows float32 [n, C] and their keys [n], few at a time, for `values` [..., C]."""
    if keys is None:
        raise UsageError("a codec that draws at random needs the rows' keys: pass encode(..., keys=ids)")
    *lead, classes = values.shape
    if list(keys.shape) != lead:
        raise UsageError(f"keys are {list(keys.shape)} and the rows {lead}; give one key for each row")
    rows, flat = values.reshape(math.prod(lead), classes), keys.reshape(-1).to(values.device, torch.int64)
    each = max(1, CHUNK // classes)
    parts = [encode(rows[at : at + each].float(), flat[at : at + each]) for at in range(0, max(len(rows), 1), each)]
    return {name: torch.cat([part[name] for part in parts]).reshape(*lead, *column.shape[1:])
            for name, column in parts[0].items()}  # fmt: skip


def masses(values: Tensor, temperature: float) -> Tensor:
    """p_T of logits float32 [n, C] in units of 2^-52: whole numbers as float64."""
    if temperature < 1:  # the quotient alone might be infinite
        values = values - values.amax(-1, keepdim=True)
    scaled = values if temperature == 1 else values / temperature
    # In float32 this is as exact, and faster: a power of two is a factor, and what is above 2^23 is whole already.
    return torch.softmax(scaled, dim=-1).mul_(2.0**52).round_().double()


def drawn(weights: Tensor, points: Tensor) -> Tensor:
    """Classes int64 [n, K] at `points` [n, K] in [0, 1) of the running sums of masses [n, C] by class id.

    0 in a row without mass.
    """
    sums = weights.cumsum(-1)
    places = (points * sums[:, -1:]).floor_().minimum(sums[:, -1:] - 1)
    return torch.searchsorted(sums, places, right=True)
