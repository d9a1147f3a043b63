"""Every value as an integer of 8 or 4 bits: `code * scale + zero`, one scale and zero a row or a channel.

8 bits span what lies between a group's smallest and largest value. For 4 bits of logits the upper end is the largest
logit, and the lower end is chosen for each row among 8, from the smallest logit up to the middle of the range: the one
of least sum over T = 1, 2, 4 of T^2 KL(teacher || decoded), as distillation losses weigh the error. Small logits are
then held at the lower end, and the finer step is worth more: on a CIFAR-100 teacher the KL at T = 1, 2, 4 is 38, 37 and
20 % smaller than with the whole range (tests/benchmarks/LOG.md). Feature maps keep their whole range; vectors of
features, which are no logits, are for 8 bits.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kdcache.arrays import Array
from kdcache.codecs.bits import pack, packed_bytes, unpack
from kdcache.codecs.codec import check_columns, known_keys, torch_dtype
from kdcache.codecs.quantised_logits import QuantisedLogits
from kdcache.errors import StoreDamaged, UsageError

__all__ = ["NEEDS_PILOT", "check", "columns", "configure", "decode", "encode", "fit"]

NEEDS_PILOT = False
CHUNK = 1 << 20  # values that are worked on at once
SHARES = (1.0, 0.95, 0.9, 0.85, 0.8, 0.7, 0.6, 0.5)  # of the range from the largest logit down
TEMPERATURES = (4, 2, 1)  # each half of the one before, so that exp(z / T) is the square of the one before


def configure(configuration: Mapping[str, Any], array: Array) -> dict[str, Any]:
    """{"bits": 8 (default) or 4, "per": "row" or "channel", "dtype": of scale and zero, "float16" or "float32"}.

    "row" is one scale for each vector of [C] or [P, C] (the only choice there), or for a whole feature map; "channel"
    one for each D of a feature map [D, H, W], the default there.
    """
    known_keys("quant", configuration, ("bits", "dtype", "per"))
    if not array.shape or not array.dtype.startswith(("float", "bfloat")):
        raise UsageError(f"quant is for logits and feature maps, and this field is {array}; use the dense codec")
    bits = configuration.get("bits", 8)
    if not isinstance(bits, int) or bits not in (4, 8):
        raise UsageError(f"quant: bits = {bits!r}; take 8 or 4")
    maps = len(array.shape) > 2
    per = configuration.get("per", "channel" if maps else "row")
    if per not in ("row", "channel"):
        raise UsageError(f"quant: per = {per!r}; take row or channel")
    if per == "channel" and not maps:
        raise UsageError(f'quant: per = "channel" is for feature maps [D, H, W], and this field is {array}; use "row"')
    dtype = configuration.get("dtype", "float16")
    if dtype not in ("float16", "float32"):
        raise UsageError(f"quant: dtype = {dtype!r}; scale and zero are float16 or float32")
    return {"bits": bits, "dtype": dtype, "per": per}


def columns(array: Array, configuration: Mapping[str, Any]) -> dict[str, Array]:
    """Codes, two in a byte if they have 4 bits, the first in the lower half; and scale and zero of each group."""
    lead, size = _groups(array, configuration)
    return {
        "": Array("uint8", (*lead, packed_bytes(size, configuration["bits"]))),
        "range": Array(configuration["dtype"], (*lead, 2)),
    }


def fit(pilot: Tensor, configuration: Mapping[str, Any]) -> dict[str, np.ndarray[Any, Any]]:
    return {}


def encode(
    values: Tensor, configuration: Mapping[str, Any], tables: Mapping[str, Tensor], keys: Tensor | None = None
) -> dict[str, Tensor]:
    """Of logits [..., C] or feature maps [B, D, H, W]. UsageError if `dtype` does not hold a scale or zero."""
    maps = values.ndim > 3
    lead = values.shape[: 2 if configuration["per"] == "channel" else 1] if maps else values.shape[:-1]
    size = math.prod(values.shape[len(lead) :])
    groups = values.reshape(math.prod(lead), size)
    each = max(1, CHUNK // size)
    parts = [
        _encoded(groups[at : at + each].float(), configuration, maps) for at in range(0, max(len(groups), 1), each)
    ]
    codes, ranges = (torch.cat(column) for column in zip(*parts, strict=True))
    packed = codes.to(torch.uint8) if configuration["bits"] == 8 else pack(codes, 4)
    return {"": packed.reshape(*lead, packed.shape[1]), "range": ranges.reshape(*lead, 2)}


def check(
    stored: Mapping[str, Tensor], array: Array, configuration: Mapping[str, Any], tables: Mapping[str, Tensor]
) -> None:
    check_columns(stored, columns(array, configuration))
    ranges = stored["range"]
    if not ranges.isfinite().all():
        raise StoreDamaged("column 'range' holds NaN or infinity; run `kdcache verify`")
    if (ranges[..., 0] < 0).any():
        raise StoreDamaged("column 'range' holds a negative scale; run `kdcache verify`")
    scale, zero = _apart(ranges)
    if not (scale * (2 ** configuration["bits"] - 1) + zero).isfinite().all():
        raise StoreDamaged("column 'range' reaches beyond what float32 holds; run `kdcache verify`")


def decode(
    stored: Mapping[str, Tensor], array: Array, configuration: Mapping[str, Any], tables: Mapping[str, Tensor]
) -> QuantisedLogits | Tensor:
    """QuantisedLogits [B, ..., C] for arrays of one or two axes, else the map as `array.dtype` [B, D, H, W]."""
    if stored[""].device.type == "cpu":
        check(stored, array, configuration, tables)
    codes = stored[""]
    if configuration["bits"] == 4:
        codes = unpack(codes.contiguous(), 4, _groups(array, configuration)[1]).to(torch.uint8)
    scale, zero = _apart(stored["range"])
    if len(array.shape) <= 2:
        return QuantisedLogits(codes, scale, zero)
    values = codes.float().mul_(scale).add_(zero).reshape(len(codes), *array.shape)
    return values.to(torch_dtype(array.dtype))


def _groups(array: Array, configuration: Mapping[str, Any]) -> tuple[tuple[int, ...], int]:
    """The axes that count groups, and the values of a group."""
    if len(array.shape) <= 2:
        return array.shape[:-1], array.shape[-1]
    axes = 1 if configuration["per"] == "channel" else 0
    return array.shape[:axes], math.prod(array.shape[axes:])


def _apart(ranges: Tensor) -> tuple[Tensor, Tensor]:
    """Scale and zero, float32 [..., 1] each."""
    return ranges[..., :1].float(), ranges[..., 1:].float()


def _encoded(groups: Tensor, configuration: Mapping[str, Any], maps: bool) -> tuple[Tensor, Tensor]:
    """Codes float32 [n, size] and ranges [n, 2] of groups float32 [n, size]."""
    low, high = groups.amin(1, keepdim=True), groups.amax(1, keepdim=True)
    if maps or configuration["bits"] == 8:
        ranges = _ranges(low, high, configuration)
        return _codes(groups, ranges, configuration), ranges
    log_p = [torch.log_softmax(groups / temperature, dim=1) for temperature in TEMPERATURES]
    p = [each.exp() for each in log_p]
    # log p differs from z / T by log Z_T in every class; any one tells it, and the largest is the best conditioned
    log_z = [
        high / temperature - each.amax(1, keepdim=True) for temperature, each in zip(TEMPERATURES, log_p, strict=True)
    ]
    best: tuple[Tensor, Tensor, Tensor] | None = None
    for share in SHARES:
        ranges = _ranges(high - share * (high - low), high, configuration)
        codes = _codes(groups, ranges, configuration)
        scale, zero = _apart(ranges)
        decoded = codes * scale + zero
        power = ((decoded - high) / TEMPERATURES[0]).exp_()
        lost = torch.zeros_like(high)
        for temperature, target, log_total in zip(TEMPERATURES, p, log_z, strict=True):
            across = (target * (groups - decoded)).sum(1, keepdim=True) / temperature
            kl = across + power.sum(1, keepdim=True).log() + high / temperature - log_total
            lost += temperature**2 * kl
            power = power.square()
        if best is None:
            best = codes, ranges, lost
        else:
            better = lost < best[2]
            best = (
                torch.where(better, codes, best[0]),
                torch.where(better, ranges, best[1]),
                torch.where(better, lost, best[2]),
            )
    assert best is not None
    return best[0], best[1]


def _ranges(low: Tensor, high: Tensor, configuration: Mapping[str, Any]) -> Tensor:
    """Scale and zero as they are stored, [n, 2]."""
    dtype = torch_dtype(configuration["dtype"])
    zero = low.to(dtype)
    scale = ((high - zero.float()) / (2 ** configuration["bits"] - 1)).clamp_(min=0).to(dtype)
    ranges = torch.cat([scale, zero], 1)
    if not ranges.isfinite().all():
        bad = ~ranges.isfinite().all(1)
        raise UsageError(
            f"quant: values from {float(low[bad][0]):g} to {float(high[bad][0]):g} have a scale or zero that "
            f'{configuration["dtype"]} does not hold; set dtype = "float32", or take the dense codec'
        )
    return ranges


def _codes(groups: Tensor, ranges: Tensor, configuration: Mapping[str, Any]) -> Tensor:
    """Nearest codes, float32; 0 where all values are alike."""
    scale, zero = _apart(ranges)
    return (
        ((groups - zero) / torch.where(scale > 0, scale, math.inf)).round_().clamp_(0, 2 ** configuration["bits"] - 1)
    )
