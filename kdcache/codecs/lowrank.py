"""Transform coding of logits: a fitted basis, bits where the variance is, any temperature afterwards.

Softmax does not see a row's mean, and what is left of the logits lies near a subspace no wider than the teacher's last
layer. `lowrank_fit` takes the principal components of a pilot and shares 8 b bits among them; `lowrank_round` chooses a
row's codes by what its own losses see of the error, at all `temperatures` together.

A row is uint8 [b]. Component j has `bits[j]` bits, at bits sum(bits[:j]) onwards; bit i of a row is bit i % 8, counted
from the least, of byte i // 8; bits left over are 0. The code c stands for sinh(curve * m) / curve * step with
m = c + 1/2 - 2**(bits - 1), and for m * step where the tables have no curve.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kdcache.arrays import Array
from kdcache.codecs.codec import check_columns, known_keys, torch_dtype
from kdcache.codecs.lowrank_fit import MOST_BITS, fitted
from kdcache.codecs.lowrank_round import joint_codes, level
from kdcache.errors import StoreDamaged, UsageError

__all__ = ["NEEDS_PILOT", "check", "columns", "configure", "decode", "encode", "fit"]

NEEDS_PILOT = True
LEAST_BYTES = 4
TEMPERATURES = (1.0, 2.0, 4.0)
MOST_BEND = 16.0  # of curve * m: sinh of it is still far from what float32 holds


def configure(configuration: Mapping[str, Any], array: Array) -> dict[str, Any]:
    """{"bytes": b}, the width of a row, and "temperatures" where they are not 1, 2 and 4."""
    known_keys("lowrank", configuration, ("bytes", "temperatures"))
    if not array.shape or array.shape[-1] < 2:
        raise UsageError(f"lowrank is for logits, one vector a row, and this field is {array}; use the dense codec")
    classes, size = array.shape[-1], configuration.get("bytes")
    most = (MOST_BITS * (classes - 1) + 7) // 8
    if most <= LEAST_BYTES:
        raise UsageError(f"lowrank has nothing to gain on {classes} classes; use the dense codec")
    if not isinstance(size, int) or isinstance(size, bool) or not LEAST_BYTES <= size <= most:
        raise UsageError(
            f"lowrank: bytes = {size!r}; for {classes} classes give {LEAST_BYTES} to {most} "
            f"(the dense codec in float16 takes {2 * classes})"
        )
    asked = configuration.get("temperatures")
    if asked is None:
        return {"bytes": size}
    temperatures = list(asked) if isinstance(asked, list | tuple) else []
    if not 1 <= len(temperatures) <= 8 or not all(
        isinstance(t, int | float) and not isinstance(t, bool) and 0.1 <= t <= 1000 for t in temperatures
    ):
        raise UsageError(f"lowrank: temperatures = {asked!r}; give one to eight numbers from 0.1 to 1000")
    return {"bytes": size, "temperatures": [float(t) for t in temperatures]}


def columns(array: Array, configuration: Mapping[str, Any]) -> dict[str, Array]:
    return {"": Array("uint8", (*array.shape[:-1], configuration["bytes"]))}


def fit(pilot: Tensor, configuration: Mapping[str, Any]) -> dict[str, np.ndarray[Any, Any]]:
    """Tables from [P, C] logits: basis float32 [r, C], mean float32 [C], step and curve float32 [r], bits uint8 [r]."""
    return {name: table.numpy() for name, table in fitted(pilot, 8 * configuration["bytes"]).items()}


def encode(
    values: Tensor, configuration: Mapping[str, Any], tables: Mapping[str, Tensor], keys: Tensor | None = None
) -> dict[str, Tensor]:
    """In float64, so that a row's bytes depend on no batch size and on no reduced-precision product."""
    bits, size = tables["bits"].int(), configuration["bytes"]
    codes = joint_codes(
        values.reshape(-1, values.shape[-1]).double(),
        tables["basis"].double(),
        tables["mean"].double(),
        (tables["step"].double(), bits, _curve(tables).double()),
        configuration.get("temperatures", TEMPERATURES),
    ).int()
    byte, shift = layout(bits)
    codes = codes << shift  # at most 16 + 7 bits: three bytes
    packed = torch.zeros(len(codes), size + 2, dtype=torch.int32, device=values.device)
    for place in range(3):  # no two components share a bit, so adding is joining
        packed.index_add_(1, byte + place, codes >> 8 * place & 0xFF)
    return {"": packed[:, :-2].to(torch.uint8).reshape(*values.shape[:-1], size)}


def _curve(tables: Mapping[str, Tensor]) -> Tensor:
    """The tables of the first stores have none: their levels are evenly spaced."""
    return tables["curve"] if "curve" in tables else torch.zeros_like(tables["step"])


def layout(bits: Tensor) -> tuple[Tensor, Tensor]:
    """Where each component starts in a row: byte, and bit in that byte."""
    start = bits.cumsum(0, dtype=torch.int32) - bits
    return start >> 3, start & 7


def check(
    stored: Mapping[str, Tensor], array: Array, configuration: Mapping[str, Any], tables: Mapping[str, Tensor]
) -> None:
    """Above all that the tables lead to no byte outside a row."""
    check_columns(stored, columns(array, configuration))
    if set(tables) - {"curve"} != {"basis", "mean", "step", "bits"}:
        raise StoreDamaged(
            f"the field's tables are {str(sorted(tables))[:200]}; lowrank needs basis, bits, mean and step, "
            "and may have curve"
        )
    rank, classes = tables["bits"].numel(), array.shape[-1]
    wanted = {
        "basis": Array("float32", (rank, classes)),
        "mean": Array("float32", (classes,)),
        "step": Array("float32", (rank,)),
        "curve": Array("float32", (rank,)),
        "bits": Array("uint8", (rank,)),
    }
    for name, table in tables.items():
        if table.dtype != torch_dtype(wanted[name].dtype) or tuple(table.shape) != wanted[name].shape:
            raise StoreDamaged(
                f"table {name!r} is {table.dtype} {list(table.shape)}; {array} in {rank} components "
                f"needs {wanted[name]}"
            )
        if not table.isfinite().all():
            raise StoreDamaged(f"table {name!r} holds NaN or infinity; run `kdcache verify`")
    bits, room = tables["bits"].tolist(), 8 * configuration["bytes"]
    if sum(bits) > room or not all(1 <= count <= 16 for count in bits):
        raise StoreDamaged(
            f"table 'bits' gives {min(bits)} to {max(bits)} bits to a component and {sum(bits)} to a "
            f"row; 1 to 16 and at most {room} can be"
        )
    bend = _curve(tables) * 2.0 ** (tables["bits"].int() - 1)
    if not ((bend >= 0) & (bend <= MOST_BEND)).all():
        raise StoreDamaged(
            f"table 'curve' bends the outermost level by {float(bend.min()):g} to {float(bend.max()):g}; "
            f"0 to {MOST_BEND:g} can be"
        )
    outermost = level(torch.zeros_like(tables["step"]), tables["step"], tables["bits"].int(), _curve(tables))
    reach = outermost.double().abs() @ torch.linalg.vector_norm(tables["basis"], torch.inf, dim=1).double()
    if not reach + tables["mean"].abs().max() <= torch.finfo(torch.float32).max:
        raise StoreDamaged("tables 'basis', 'mean' and 'step' reach beyond what float32 holds; run `kdcache verify`")


def decode(
    stored: Mapping[str, Tensor], array: Array, configuration: Mapping[str, Any], tables: Mapping[str, Tensor]
) -> Tensor:
    """Logits float32 [B, *shape] whose mean over the classes is 0."""
    if stored[""].device.type == "cpu":
        check(stored, array, configuration, tables)
    bits = tables["bits"].int()
    byte, shift = layout(bits)
    packed = torch.nn.functional.pad(stored[""].int(), (0, 2))
    word = packed[..., byte] | packed[..., byte + 1] << 8 | packed[..., byte + 2] << 16
    codes = word >> shift & (1 << bits) - 1
    return level(codes, tables["step"], bits, _curve(tables)) @ tables["basis"] + tables["mean"]
