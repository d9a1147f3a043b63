"""N draws from the teacher's distribution, and how often each class came: E[count / N] = p, nothing cut off.

The estimate of random-sampling distillation (Anshumann et al. 2025, "Sparse Logit Sampling", with the teacher itself as
the proposal): E||p^ - p||^2 = (1 - sum p^2) / N. Draw j of a row is the class at which the running sum of p passes the
row's j-th keyed uniform number. The N classes, sorted, are one Elias-Fano row (`ascending`), which needs no counts.
`threshold` is as unbiased with a smaller error for the same bytes; this is what it is measured against.
"""

from __future__ import annotations

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
from kdcache.codecs.sampled_logits import SampledLogits
from kdcache.errors import UsageError

__all__ = ["NEEDS_PILOT", "check", "columns", "configure", "decode", "encode", "fit"]

NEEDS_PILOT = False
MOST = 1 << 16


def configure(configuration: Mapping[str, Any], array: Array) -> dict[str, Any]:
    """{"draws": 1 to 65536, "temperature": of the distribution (default 1), "seed": of the draws (default 0)}."""
    known_keys("sampled", configuration, ("draws", "seed", "temperature"))
    found = of_a_draw("sampled", configuration, array, "draws")
    if found["draws"] > MOST:
        raise UsageError(f"sampled: draws = {found['draws']}; take at most {MOST}, or the dense codec")
    return found


def columns(array: Array, configuration: Mapping[str, Any]) -> dict[str, Array]:
    """The classes drawn, ascending."""
    return {"": Array("uint8", (*array.shape[:-1], ascending_bytes(configuration["draws"], array.shape[-1])))}


def fit(pilot: Tensor, configuration: Mapping[str, Any]) -> dict[str, np.ndarray[Any, Any]]:
    return {}


def encode(
    values: Tensor, configuration: Mapping[str, Any], tables: Mapping[str, Tensor], keys: Tensor | None = None
) -> dict[str, Tensor]:
    """Draws from softmax(values / T) of logits [..., C], by the rows' keys int64 [...]."""

    def rows(chunk: Tensor, numbers: Tensor) -> dict[str, Tensor]:
        points = draws(configuration["seed"], numbers, configuration["draws"])
        classes = drawn(masses(chunk, configuration["temperature"]), points)
        return {"": pack_ascending(classes.sort(-1).values, chunk.shape[-1])}

    return by_rows(values, keys, rows)


def check(
    stored: Mapping[str, Tensor], array: Array, configuration: Mapping[str, Any], tables: Mapping[str, Tensor]
) -> None:
    """Above all that every draw is a class: a gather on an accelerator would not say so."""
    check_columns(stored, columns(array, configuration))
    check_ascending("", stored[""], configuration["draws"], array.shape[-1])


def decode(
    stored: Mapping[str, Tensor], array: Array, configuration: Mapping[str, Any], tables: Mapping[str, Tensor]
) -> SampledLogits:
    """Each class drawn once, with weight count / N; slots left over have weight 0."""
    if stored[""].device.type == "cpu":
        check(stored, array, configuration, tables)
    count = configuration["draws"]
    classes, times = merged(unpack_ascending(stored[""], count, array.shape[-1]))
    return SampledLogits(classes, times.to(torch.float32) / count, configuration["temperature"], array.shape[-1])
