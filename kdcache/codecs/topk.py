"""The k largest logits of a row, and a sketch of the others that gives the tail's mass at any temperature >= 1.

With `mass` it keeps as many as reach that probability, at most k (nucleus or top-p truncation: Holtzman et al. 2020,
section 3.1); slots left over are padding. See `sparse_logits` for the sketch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kdcache.arrays import Array
from kdcache.codecs.bits import pack, packed_bytes, unpack
from kdcache.codecs.codec import check_columns, known_keys, torch_dtype
from kdcache.codecs.gaps import from_gaps, to_gaps
from kdcache.codecs.largest import largest
from kdcache.codecs.sketch import sketch
from kdcache.codecs.sparse_logits import SparseLogits
from kdcache.errors import StoreDamaged, UsageError

__all__ = ["EARLY", "NEEDS_PILOT", "check", "columns", "configure", "decode", "encode", "fit"]

NEEDS_PILOT = False
# What the keys that the configurations of early stores lack would say.
EARLY: Mapping[str, Any] = {"index_bits": None, "temperatures": None}
EXACT_AT = (2.0, 4.0)
WHOLE = (8, 16, 32)  # bits of an index that are a dtype of their own
MOST_TEMPERATURES = 5
HOTTEST = 1000.0
CLOSEST = 1.01  # from one temperature to the next, as a factor: the polynomial divides by what lies between them
IN_CACHE = 1 << 18  # float32 values


def configure(configuration: Mapping[str, Any], array: Array) -> dict[str, Any]:
    """What is stored, from what is asked for:

    k             1 to C
    dtype         of the kept log-probabilities: "float16" (the default), "float32", or "uint8" (see `gaps`)
    mass          above 0, below 1: of the k, keep as many as reach this probability. k below C
    temperatures  where the tail's mass is exact, besides 1 and infinity; default 2 and 4; at most four above 1, to 1000
    anchor        one more of these
    index_bits    those of a class, filled in: 8, 16, or the fewest that hold C - 1 where that makes rows smaller. None
                  (with temperatures None) is an early store's: no packing, and other numbers for the tail
    """
    known_keys("topk", configuration, ("k", "dtype", "mass", "temperatures", "anchor", "index_bits"))
    if len(array.shape) not in (1, 2):
        raise UsageError(
            f"topk is for logits, one vector a row or position, and this field is {array}; use the dense codec"
        )
    classes = array.shape[-1]
    k = configuration.get("k")
    if not isinstance(k, int) or isinstance(k, bool) or k < 1:
        raise UsageError(f"topk: k = {k!r}; give the number of classes to keep, 1 to {classes}")
    if k > classes:
        raise UsageError(f"topk: k = {k} is more than the {classes} classes of the teacher; set k to at most {classes}")
    dtype = configuration.get("dtype", "float16")
    if dtype not in ("float16", "float32", "uint8"):
        raise UsageError(f"topk: dtype = {dtype!r}; take float16, float32 or uint8")
    if all(key in configuration and configuration[key] is None for key in EARLY):
        if dtype == "uint8" or "mass" in configuration or "anchor" in configuration:
            raise UsageError("topk: dtype uint8, mass and anchor need temperatures and index_bits; leave these out")
        return {"k": k, "dtype": dtype, **EARLY}
    found = {"k": k, "dtype": dtype, "index_bits": _index_bits(classes, k)}
    if configuration.get("index_bits", found["index_bits"]) != found["index_bits"]:
        raise UsageError(
            f"topk: index_bits = {configuration['index_bits']!r}; {k} of {classes} classes take {found['index_bits']}; "
            "leave it out"
        )
    found["temperatures"] = _temperatures(configuration)
    if "mass" in configuration:
        mass = configuration["mass"]
        if not isinstance(mass, float) or not 0 < mass < 1:
            raise UsageError(f"topk: mass = {mass!r}; give a probability above 0 and below 1")
        if k == classes:
            raise UsageError(f"topk: k = {k} keeps every class, so that mass has no say; set k to at most {k - 1}")
        found["mass"] = mass
    return found


def _temperatures(configuration: Mapping[str, Any]) -> list[float]:
    """1 and those that were asked for, ascending."""
    wanted = configuration.get("temperatures", EXACT_AT)
    anchor = configuration.get("anchor", 1.0)
    if not _served(anchor) or (anchor <= 1 and "anchor" in configuration):
        raise UsageError(f"topk: anchor = {anchor!r}; give a temperature above 1, at most {HOTTEST:g}")
    if not isinstance(wanted, Sequence) or isinstance(wanted, str) or not all(map(_served, wanted)):
        raise UsageError(f"topk: temperatures = {wanted!r}; give a list of numbers from 1 to {HOTTEST:g}")
    found = sorted({1.0, float(anchor), *map(float, wanted)})
    for lower, higher in pairwise(found):
        if higher < CLOSEST * lower:
            raise UsageError(
                f"topk: the tail would be exact at {lower:g} and at {higher!r}, less than 1 % more; leave one out"
            )
    if len(found) > MOST_TEMPERATURES:
        raise UsageError(
            f"topk: the tail would be exact at {found}; {MOST_TEMPERATURES} temperatures with 1 are the most"
        )
    return found


def _served(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 1 <= value <= HOTTEST


def _index_bits(classes: int, k: int) -> int:
    least = max(1, (classes - 1).bit_length())
    plain = next(bits for bits in WHOLE if least <= bits)
    return least if packed_bytes(k, least) < packed_bytes(k, plain) else plain


def columns(array: Array, configuration: Mapping[str, Any]) -> dict[str, Array]:
    """indices, values, the `scale` of values in uint8, and the tail's numbers unless k = C."""
    *lead, classes = array.shape
    k, dtype, temperatures = configuration["k"], configuration["dtype"], configuration.get("temperatures")
    bits = _bits(configuration, classes)
    indices = Array("uint8", (*lead, packed_bytes(k, bits))) if bits not in WHOLE else Array(f"uint{bits}", (*lead, k))
    found = {"indices": indices, "values": Array(dtype, (*lead, k))}
    if dtype == "uint8":
        found["scale"] = Array("float16", (*lead, 2))
    if k < classes:
        found["tail"] = Array(_floats(dtype), (*lead, 3 if temperatures is None else len(temperatures)))
    return found


def _bits(configuration: Mapping[str, Any], classes: int) -> int:
    """Of a stored class; early stores do not say so."""
    stated: int | None = configuration.get("index_bits")
    return stated or next(bits for bits in WHOLE if classes <= 1 << bits)


def _floats(dtype: str) -> str:
    """The dtype of the numbers that are not quantised."""
    return "float16" if dtype == "uint8" else dtype


def fit(pilot: Tensor, configuration: Mapping[str, Any]) -> dict[str, np.ndarray[Any, Any]]:
    return {}


def encode(
    values: Tensor, configuration: Mapping[str, Any], tables: Mapping[str, Tensor], keys: Tensor | None = None
) -> dict[str, Tensor]:
    """Log-probabilities at T = 1 of the k largest of [..., C] logits, descending; equal logits by ascending class.

    What is too large for `dtype` is held at its largest finite value: at -65504 in float16 a class has no mass at any
    temperature of use.
    """
    *lead, classes = values.shape
    k, dtype, bits = configuration["k"], configuration["dtype"], _bits(configuration, classes)
    rows = values.float().reshape(math.prod(lead), classes)
    # Few rows at a time on a CPU: temporaries that stay in its caches, and memory that need not be mapped anew.
    step = max(1, IN_CACHE // classes) if rows.device.type == "cpu" else max(1, len(rows))
    few = [rows[first : first + step] for first in range(0, max(1, len(rows)), step)]
    chosen = [largest(part, k) for part in few]
    parts = [sketch(*pair, configuration.get("temperatures")) for pair in zip(few, chosen, strict=True)]
    indices, log_p = torch.cat(chosen), torch.cat([part for part, _ in parts])
    tail = None if k == classes else torch.cat([part for _, part in parts if part is not None])
    padding = torch.zeros_like(indices, dtype=torch.bool)
    if "mass" in configuration:
        assert tail is not None
        before = log_p.exp().cumsum(1)[:, :-1]  # what the slots before the second, the third, ... have reached
        padding[:, 1:] = before >= configuration["mass"]
        dropped = [(log_p / t).masked_fill(~padding, -torch.inf).logsumexp(1) for t in configuration["temperatures"]]
        tail = torch.logaddexp(tail, torch.stack(dropped, 1))
        indices = torch.where(padding, indices[:, :1], indices)
    found = {"indices": indices.to(torch_dtype(f"uint{bits}")) if bits in WHOLE else pack(indices, bits)}
    if dtype == "uint8":
        found["values"], found["scale"] = to_gaps(log_p, ~padding)
    else:
        found["values"] = _held(log_p, dtype).masked_fill(padding, torch.finfo(torch_dtype(dtype)).min)
    if tail is not None:
        found["tail"] = _held(tail, _floats(dtype))
    return {name: column.reshape(*lead, column.shape[1]) for name, column in found.items()}


def _held(values: Tensor, dtype: str) -> Tensor:
    most = torch.finfo(torch_dtype(dtype)).max
    return values.clamp(-most, most).to(torch_dtype(dtype))


def check(
    stored: Mapping[str, Tensor], array: Array, configuration: Mapping[str, Any], tables: Mapping[str, Tensor]
) -> None:
    """Above all that every index is a class: a gather on an accelerator would not say so."""
    check_columns(stored, columns(array, configuration))
    _check_values(stored, _indices(stored, array, configuration), array, configuration)


def _check_values(
    stored: Mapping[str, Tensor], indices: Tensor, array: Array, configuration: Mapping[str, Any]
) -> None:
    classes = array.shape[-1]
    if indices.numel() and classes < 1 << _bits(configuration, classes):
        highest = int(indices.max())
        if highest >= classes:
            raise StoreDamaged(f"column 'indices' holds class {highest} of {classes}; run `kdcache verify`")
    for name, column in stored.items():
        if column.is_floating_point() and not column.isfinite().all():
            raise StoreDamaged(f"column {name!r} holds NaN or infinity; run `kdcache verify`")
    if "mass" in configuration:
        lowest = 0 if configuration["dtype"] == "uint8" else torch.finfo(stored["values"].dtype).min
        padding, values = _padding(indices), stored["values"]
        if (values.masked_select(padding) != lowest).any():
            raise StoreDamaged(
                "column 'values' holds a value in a slot that 'indices' leaves empty; run `kdcache verify`"
            )
        if lowest and (values[..., 0] == lowest).any():
            raise StoreDamaged("column 'values' holds a row that keeps no class; run `kdcache verify`")


def _indices(stored: Mapping[str, Tensor], array: Array, configuration: Mapping[str, Any]) -> Tensor:
    bits = _bits(configuration, array.shape[-1])
    return stored["indices"].long() if bits in WHOLE else unpack(stored["indices"], bits, configuration["k"])


def _padding(indices: Tensor) -> Tensor:
    """Slots that repeat the class of slot 0."""
    padding = indices == indices[..., :1]
    padding[..., 0] = False
    return padding


def decode(
    stored: Mapping[str, Tensor], array: Array, configuration: Mapping[str, Any], tables: Mapping[str, Tensor]
) -> SparseLogits:
    if stored["indices"].device.type == "cpu":
        check_columns(stored, columns(array, configuration))
    indices = _indices(stored, array, configuration)
    if indices.device.type == "cpu":
        _check_values(stored, indices, array, configuration)
    quantised, tail = configuration["dtype"] == "uint8", stored.get("tail")
    log_p = from_gaps(stored["values"], stored["scale"]) if quantised else stored["values"].float()
    if "mass" in configuration:
        log_p = log_p.masked_fill(_padding(indices), -torch.inf)
    temperatures = configuration.get("temperatures")
    return SparseLogits(
        indices,
        log_p,
        None if tail is None else tail.float(),
        array.shape[-1],
        None if temperatures is None else tuple(temperatures),
    )
