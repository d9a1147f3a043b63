"""Every value as it is, or rounded to a narrower float. Also what `id`, `label` and `input` are stored with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kdcache.arrays import DTYPES, Array
from kdcache.codecs.codec import check_columns, known_keys, torch_dtype
from kdcache.errors import UsageError

__all__ = ["NEEDS_PILOT", "check", "columns", "configure", "decode", "encode", "fit"]

NEEDS_PILOT = False
FLOATS = ("float32", "float16", "bfloat16", "float64")


def configure(configuration: Mapping[str, Any], array: Array) -> dict[str, Any]:
    """{"dtype": name}; the default is the field's own. Integers are stored as what they are."""
    known_keys("dense", configuration, ("dtype",))
    dtype = configuration.get("dtype", array.dtype)
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise UsageError(f"dense: dtype = {dtype!r} is not known; take one of {', '.join(DTYPES)}")
    if dtype != array.dtype and not (dtype in FLOATS and array.dtype in FLOATS):
        raise UsageError(f"dense: dtype = {dtype!r} does not hold a field of {array}; leave dtype out")
    return {"dtype": dtype}


def columns(array: Array, configuration: Mapping[str, Any]) -> dict[str, Array]:
    return {"": Array(configuration["dtype"], array.shape)}


def fit(pilot: Tensor, configuration: Mapping[str, Any]) -> dict[str, np.ndarray[Any, Any]]:
    return {}


def encode(
    values: Tensor, configuration: Mapping[str, Any], tables: Mapping[str, Tensor], keys: Tensor | None = None
) -> dict[str, Tensor]:
    """Round to nearest even. UsageError if a finite value becomes infinite in the narrower type."""
    name = configuration["dtype"]
    dtype = torch_dtype(name)
    if dtype == values.dtype:
        return {"": values}
    if not (values.is_floating_point() and dtype.is_floating_point):
        raise UsageError(f"dense: values of {values.dtype} cannot be stored as {name}; the plan and the source differ")
    encoded = values.to(dtype)
    over = encoded.isinf()
    if over.any():
        over &= values.isfinite()
        count = int(over.sum())
        if count:
            largest = float(values[over].abs().max())
            wider = "bfloat16 or float32" if name == "float16" else "float32 or float64"
            raise UsageError(
                f"dense: {count} of {values.numel()} values are too large for {name} (largest "
                f"{largest:g}, limit {torch.finfo(dtype).max:g}); set dtype = {wider}"
            )
    return {"": encoded}


def check(
    stored: Mapping[str, Tensor], array: Array, configuration: Mapping[str, Any], tables: Mapping[str, Tensor]
) -> None:
    check_columns(stored, columns(array, configuration))


def decode(
    stored: Mapping[str, Tensor], array: Array, configuration: Mapping[str, Any], tables: Mapping[str, Tensor]
) -> Tensor:
    """The stored values [B, *shape], widened to `array.dtype`."""
    check(stored, array, configuration, tables)
    values = stored[""]
    if configuration["dtype"] == "bfloat16":
        values = values.view(torch.bfloat16)
    return values.to(torch_dtype(array.dtype))
