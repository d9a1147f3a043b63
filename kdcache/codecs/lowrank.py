"""Transform coding of logits: a fitted basis, bits where the variance is, any temperature afterwards.

Softmax does not see a row's mean, and what is left of the logits lies near a subspace no wider than the teacher's last
layer. `fit` takes the principal components of a pilot, shares 8 b bits among them by reverse water-filling (Cover and
Thomas, Elements of Information Theory, 2nd ed., theorem 10.3.3), and searches each one's quantiser step on the pilot.

A row is uint8 [b]. Component j has `bits[j]` bits, at bits sum(bits[:j]) onwards; bit i of a row is bit i % 8, counted
from the least, of byte i // 8; bits left over are 0. The code c stands for (c + 1/2 - 2**(bits - 1)) * step.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kdcache.arrays import Array
from kdcache.codecs.codec import check_columns, known_keys, torch_dtype
from kdcache.errors import StoreDamaged, TeacherError, UsageError

__all__ = ["NEEDS_PILOT", "check", "columns", "configure", "decode", "encode", "fit"]

NEEDS_PILOT = True
LEAST_BYTES, LEAST_PILOT, MOST_BITS = 4, 32, 12
# Where to clip, in standard deviations: 1.1 to 12, 15 % apart. For a Gaussian and one bit 1.6 is best; more for more.
CLIPS = tuple(1.1 * 1.15**i for i in range(18))


def configure(configuration: Mapping[str, Any], array: Array) -> dict[str, Any]:
    """{"bytes": b}, the width of a row."""
    known_keys("lowrank", configuration, ("bytes",))
    if len(array.shape) != 1 or array.shape[0] < 2:
        raise UsageError(f"lowrank is for logits, one vector a row, and this field is {array}; use the dense codec")
    classes, size = array.shape[0], configuration.get("bytes")
    most = (MOST_BITS * (classes - 1) + 7) // 8
    if most < LEAST_BYTES:
        raise UsageError(f"lowrank has nothing to gain on {classes} classes; use the dense codec")
    if not isinstance(size, int) or isinstance(size, bool) or not LEAST_BYTES <= size <= most:
        raise UsageError(
            f"lowrank: bytes = {size!r}; for {classes} classes give {LEAST_BYTES} to {most} "
            f"(the dense codec in float16 takes {2 * classes})"
        )
    return {"bytes": size}


def columns(array: Array, configuration: Mapping[str, Any]) -> dict[str, Array]:
    return {"": Array("uint8", (configuration["bytes"],))}


def fit(pilot: Tensor, configuration: Mapping[str, Any]) -> dict[str, np.ndarray[Any, Any]]:
    """Tables from [P, C] logits: basis float32 [r, C], mean float32 [C], step float32 [r], bits uint8 [r]; in float64.

    The mean is of the centred pilot. Each row of the basis has its entry of largest magnitude positive.
    """
    rows, classes = pilot.shape
    if rows < LEAST_PILOT:
        raise UsageError(
            f"lowrank: the pilot has {rows} rows and the fit needs {LEAST_PILOT}; "
            "dump more rows, or use the dense or topk codec"
        )
    values = pilot.detach().cpu().double()
    if not values.isfinite().all():
        raise TeacherError("lowrank: the pilot's logits hold NaN or infinity; look at the teacher's precision")
    centred = values - values.mean(1, keepdim=True)
    mean = centred.mean(0)
    centred = centred - mean
    variance, vectors = torch.linalg.eigh(centred.T @ centred / rows)
    useful = int((variance > variance[-1] * 1e-12).sum()) if variance[-1] > 0 else 0
    useful = min(useful, classes - 1, rows - 1, 8 * configuration["bytes"])
    if not useful:
        raise UsageError("lowrank: all rows of the pilot are alike, so there is nothing to fit; check the teacher")
    basis = vectors.flip(1).T[:useful]
    basis = basis * basis.gather(1, basis.abs().argmax(1, keepdim=True)).sign()
    bits = share(variance.flip(0)[:useful], 8 * configuration["bytes"])
    used = bits > 0
    basis, bits = basis[used], bits[used]
    step = search(centred @ basis.T, bits)
    return {
        "basis": basis.float().numpy(),
        "mean": mean.float().numpy(),
        "step": step.float().numpy(),
        "bits": bits.to(torch.uint8).numpy(),
    }


def share(variance: Tensor, total: int) -> Tensor:
    """Bits int64 [r] that add up to `total`, or to all that the components can take.

    A bit quarters the error of a component, so the next one goes where variance / 4**bits is largest. (Going by the
    error measured on the pilot instead gains a little at T = 4 and loses as much at T = 1.)
    """
    left = variance.numpy().copy()
    bits = np.zeros(len(left), dtype=np.int64)
    for _ in range(min(total, MOST_BITS * len(left))):
        best = int(left.argmax())
        bits[best] += 1
        left[best] = left[best] / 4 if bits[best] < MOST_BITS else -1.0
    return torch.from_numpy(bits)


def search(coefficients: Tensor, bits: Tensor) -> Tensor:
    """The step [r] of each component of float64 [P, r] that leaves the least squared error."""
    deviation = coefficients.square().mean(0).sqrt()
    least, best = torch.full_like(deviation, torch.inf), deviation
    for clip in CLIPS:
        step = 2 * clip * deviation / 2.0**bits
        error = (dequantise(quantise(coefficients, step, bits), step, bits) - coefficients).square().mean(0)
        best = torch.where(error < least, step, best)
        least = torch.minimum(error, least)
    return best


def quantise(coefficients: Tensor, step: Tensor, bits: Tensor) -> Tensor:
    """Codes 0 to 2**bits - 1, as floats, of coefficients [B, r]."""
    half = 2.0 ** (bits - 1)
    return torch.minimum(torch.maximum((coefficients / step).floor(), -half), half - 1) + half


def dequantise(codes: Tensor, step: Tensor, bits: Tensor) -> Tensor:
    return (codes - 2.0 ** (bits - 1) + 0.5) * step


def encode(values: Tensor, configuration: Mapping[str, Any], tables: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """In float64, so that a row's bytes depend on no batch size and on no reduced-precision product."""
    wide = values.double()
    wide = wide - wide.mean(1, keepdim=True) - tables["mean"]
    bits = tables["bits"].int()
    codes = quantise(wide @ tables["basis"].double().T, tables["step"].double(), bits).int()
    byte, shift = layout(bits)
    codes = codes << shift  # at most 16 + 7 bits: three bytes
    packed = torch.zeros(len(values), configuration["bytes"] + 2, dtype=torch.int32, device=values.device)
    for place in range(3):  # no two components share a bit, so adding is joining
        packed.index_add_(1, byte + place, codes >> 8 * place & 0xFF)
    return {"": packed[:, :-2].to(torch.uint8)}


def layout(bits: Tensor) -> tuple[Tensor, Tensor]:
    """Where each component starts in a row: byte, and bit in that byte."""
    start = bits.cumsum(0, dtype=torch.int32) - bits
    return start >> 3, start & 7


def check(
    stored: Mapping[str, Tensor], array: Array, configuration: Mapping[str, Any], tables: Mapping[str, Tensor]
) -> None:
    """Above all that the tables lead to no byte outside a row."""
    check_columns(stored, columns(array, configuration))
    if set(tables) != {"basis", "mean", "step", "bits"}:
        raise StoreDamaged(f"the field's tables are {sorted(tables)}; lowrank needs basis, bits, mean and step")
    rank, classes = tables["bits"].numel(), array.shape[0]
    wanted = {
        "basis": Array("float32", (rank, classes)),
        "mean": Array("float32", (classes,)),
        "step": Array("float32", (rank,)),
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


def decode(
    stored: Mapping[str, Tensor], array: Array, configuration: Mapping[str, Any], tables: Mapping[str, Tensor]
) -> Tensor:
    """Logits float32 [B, C] whose row mean is 0."""
    if stored[""].device.type == "cpu":
        check(stored, array, configuration, tables)
    bits = tables["bits"].int()
    byte, shift = layout(bits)
    packed = torch.nn.functional.pad(stored[""].int(), (0, 2))
    word = packed[:, byte] | packed[:, byte + 1] << 8 | packed[:, byte + 2] << 16
    codes = word >> shift & (1 << bits) - 1
    return dequantise(codes, tables["step"], bits) @ tables["basis"] + tables["mean"]
