"""The k largest logits of a row, and a sketch of the others that gives the tail's mass at any temperature >= 1."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kdcache.arrays import Array
from kdcache.codecs.codec import check_columns, known_keys, torch_dtype
from kdcache.codecs.targets import SparseLogits
from kdcache.errors import StoreDamaged, UsageError

__all__ = ["NEEDS_PILOT", "check", "columns", "configure", "decode", "encode", "fit"]

NEEDS_PILOT = False


def configure(configuration: Mapping[str, Any], array: Array) -> dict[str, Any]:
    """{"k": 1 to C, "dtype": of values and tail, "float16" (the default) or "float32"}."""
    known_keys("topk", configuration, ("k", "dtype"))
    if len(array.shape) != 1:
        raise UsageError(f"topk is for logits, one vector a row, and this field is {array}; use the dense codec")
    classes = array.shape[0]
    k = configuration.get("k")
    if not isinstance(k, int) or isinstance(k, bool) or k < 1:
        raise UsageError(f"topk: k = {k!r}; give the number of classes to keep, 1 to {classes}")
    if k > classes:
        raise UsageError(f"topk: k = {k} is more than the {classes} classes of the teacher; set k to at most {classes}")
    dtype = configuration.get("dtype", "float16")
    if dtype not in ("float16", "float32"):
        raise UsageError(f"topk: dtype = {dtype!r}; take float16 or float32")
    return {"k": k, "dtype": dtype}


def columns(array: Array, configuration: Mapping[str, Any]) -> dict[str, Array]:
    """Class indices in the narrowest unsigned type, log-probabilities, and the tail's three numbers unless k = C."""
    k, dtype, classes = configuration["k"], configuration["dtype"], array.shape[0]
    found = {"indices": Array(index_dtype(classes), (k,)), "values": Array(dtype, (k,))}
    return found if k == classes else {**found, "tail": Array(dtype, (3,))}


def index_dtype(classes: int) -> str:
    return "uint8" if classes <= 1 << 8 else "uint16" if classes <= 1 << 16 else "uint32"


def fit(pilot: Tensor, configuration: Mapping[str, Any]) -> dict[str, np.ndarray[Any, Any]]:
    return {}


def encode(values: Tensor, configuration: Mapping[str, Any], tables: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Log-probabilities at T = 1 of the k largest of [B, C] logits, descending; equal logits by ascending class.

    tail = mean, variance and log-sum-exp of the other C - k log-probabilities. What is too large for `dtype` is
    held at its largest finite value: at -65504 in float16 a class has no mass at any temperature of use.
    """
    k = configuration["k"]
    classes = values.shape[1]
    log_p = torch.log_softmax(values.float(), dim=1)
    kept = largest(values.float(), k)
    found = {"indices": kept.to(torch_dtype(index_dtype(classes))), "values": log_p.gather(1, kept)}
    if k < classes:
        mean = log_p.scatter(1, kept, 0.0).sum(1, keepdim=True) / (classes - k)
        variance = (log_p - mean).scatter(1, kept, 0.0).square().sum(1, keepdim=True) / (classes - k)
        mass = log_p.scatter(1, kept, -torch.inf).logsumexp(1, keepdim=True)
        found["tail"] = torch.cat([mean, variance, mass], dim=1)
    dtype = torch_dtype(configuration["dtype"])
    most = torch.finfo(dtype).max
    return {
        name: column if name == "indices" else column.clamp(-most, most).to(dtype) for name, column in found.items()
    }


def largest(values: Tensor, k: int) -> Tensor:
    """Classes int64 [B, k] of the k largest of float32 [B, C], descending, ties by ascending class.

    torch.topk promises no order among equals, so it is given keys without equals: the float's bits as an integer of
    the same order above, the class counted from the end below.
    """
    bits = (values + 0.0).view(torch.int32)  # + 0.0 makes the two zeros one
    ordered = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    from_end = torch.arange(values.shape[1] - 1, -1, -1, device=values.device)
    return (ordered.long() << 32 | from_end).topk(k, dim=1).indices


def check(
    stored: Mapping[str, Tensor], array: Array, configuration: Mapping[str, Any], tables: Mapping[str, Tensor]
) -> None:
    """Above all that every index is a class: a gather on an accelerator would not say so."""
    check_columns(stored, columns(array, configuration))
    classes = array.shape[0]
    indices = stored["indices"]
    if indices.numel() and classes - 1 < torch.iinfo(indices.dtype).max:
        highest = int(indices.long().max())
        if highest >= classes:
            raise StoreDamaged(f"column 'indices' holds class {highest} of {classes}; run `kdcache verify`")
    for name in stored.keys() - {"indices"}:
        if not stored[name].isfinite().all():
            raise StoreDamaged(f"column {name!r} holds NaN or infinity; run `kdcache verify`")


def decode(
    stored: Mapping[str, Tensor], array: Array, configuration: Mapping[str, Any], tables: Mapping[str, Tensor]
) -> SparseLogits:
    if stored["indices"].device.type == "cpu":
        check(stored, array, configuration, tables)
    tail = stored.get("tail")
    return SparseLogits(
        stored["indices"].long(), stored["values"].float(), None if tail is None else tail.float(), array.shape[0]
    )
