"""The tables of the low-rank codec, from a pilot: principal components, their bits, their levels. In float64.

Bits go where they take away most squared error (reverse water-filling; Cover and Thomas, Elements of Information
Theory, 2nd ed., theorem 10.3.3). How wide the levels of a component reach, and how much closer they stand in the
middle, is searched on the pilot.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from kdcache.errors import TeacherError, UsageError

__all__ = ["LEAST_PILOT", "MOST_BITS", "fitted", "principal", "search", "share"]

LEAST_PILOT, MOST_BITS, MOST_RANK = 32, 16, 512
WIDE = 8192  # classes from which on the pilot is cut to NARROW_PILOT rows, so that a fit stays under a minute
MOST_PILOT, NARROW_PILOT, MOST_VALUES = 4096, 2048, 1 << 17
# Squared error of the best quantiser of 0, 1, ... bits of a standard Gaussian (J. Max, Quantizing for minimum
# distortion, 1960, table I); a quarter for each further bit.
DISTORTION = (1.0, 0.3634, 0.1175, 0.03454, 0.009497, 0.002499, 0.0006400)
CLIPS = tuple(1.1 * 1.15**i for i in range(24))  # outermost level, in standard deviations: 1.1 to 27, 15 % apart
# Values that the pilot lacks, in its largest one's units, and how many of each: they keep a fine quantiser from ending
# where the pilot does, and a coarse one does not notice them.
BEYOND = ((1.2, 0.1), (2.5, 0.001))
NARROWER = 0.93  # codes that are chosen jointly stray less far than the nearest ones: 5 % less KL at T = 1 and 2
BENDS = (0.3, 0.8, 1.4, 2.0, 2.6, 3.3, 4.5)  # levels in the middle are cosh of it as close as the outermost ones


def fitted(pilot: Tensor, room: int) -> dict[str, Tensor]:
    """basis float32 [r, C], mean float32 [C], step and curve float32 [r], bits uint8 [r], for `room` bits a row.

    The mean is of the centred pilot. Each row of the basis has its entry of largest magnitude positive.
    """
    rows, classes = pilot.shape
    if rows < LEAST_PILOT:
        raise UsageError(
            f"lowrank: the pilot has {rows} rows and the fit needs {LEAST_PILOT}; "
            "dump more rows, or use the dense or topk codec"
        )
    most = NARROW_PILOT if classes > WIDE else MOST_PILOT
    values = pilot.detach()[:: -(-rows // most)].cpu().double()
    if not pilot.isfinite().all():
        raise TeacherError("lowrank: the pilot's logits hold NaN or infinity; look at the teacher's precision")
    values -= values.mean(1, keepdim=True)
    mean = values.mean(0)
    values -= mean
    basis, variance = principal(values, min(room, MOST_RANK))
    if not len(basis):
        raise UsageError("lowrank: all rows of the pilot are alike, so there is nothing to fit; check the teacher")
    bits = share(variance, room)
    used = bits > 0
    basis, bits = basis[used], bits[used]
    step, curve = search(values @ basis.T, bits)
    return {
        "basis": basis.float(),
        "mean": mean.float(),
        "step": step.float(),
        "curve": curve.float(),
        "bits": bits.to(torch.uint8),
    }


def principal(values: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """Orthonormal axes [r, C] of centred [P, C], falling, and the variance along each; by the smaller Gram matrix."""
    rows, classes = values.shape
    tall = rows >= classes
    variance, vectors = torch.linalg.eigh((values.T @ values if tall else values @ values.T) / rows)
    variance = variance.flip(0)
    # What lies below is rounding: of float32 logits, and of dividing by the square root of a small variance.
    useful = int((variance > variance[0] * (1e-12 if tall else 1e-9)).sum()) if variance[0] > 0 else 0
    useful = min(useful, classes - 1, rows - 1, most)
    basis = vectors.flip(1).T[:useful]
    if not tall:
        basis = basis @ values / (variance[:useful, None] * rows).sqrt()
    if useful:
        basis = basis * basis.gather(1, basis.abs().argmax(1, keepdim=True)).sign()
    return basis, variance[:useful]


def share(variance: Tensor, total: int) -> Tensor:
    """Bits int64 [r] that add up to `total`, or to all that the components can take.

    The next bit goes where it takes away most. (Going by the error measured on the pilot instead gains a little at
    T = 4 and loses as much at T = 1.)
    """
    table = list(DISTORTION)
    while len(table) < MOST_BITS + 1:
        table.append(table[-1] / 4)
    gains = np.append(-np.diff(table), -1.0)
    bits = np.zeros(len(variance), dtype=np.int64)
    gain = variance.numpy() * gains[0]
    for _ in range(min(total, MOST_BITS * len(bits))):
        best = int(gain.argmax())
        bits[best] += 1
        gain[best] = float(variance[best]) * gains[bits[best]]
    return torch.from_numpy(bits)


def search(coefficients: Tensor, bits: Tensor) -> tuple[Tensor, Tensor]:
    """Step and curve [r] of each component of float64 [P, r]: least squared error, and then a little narrower."""
    rows, rank = coefficients.shape
    deviation = coefficients.square().mean(0).sqrt()
    values = coefficients[:: -(-rows * rank // MOST_VALUES)].abs() / deviation  # levels are the same on either side
    largest = coefficients.abs().amax(0) / deviation
    half = 2.0 ** (bits - 1)
    one = torch.ones((), dtype=values.dtype)
    least = torch.full_like(deviation, torch.inf)
    best = torch.ones(2, rank, dtype=deviation.dtype)
    for bend in BENDS:
        curve = (bend / half).double()
        for clip in CLIPS:
            # `level` of `nearest`, in units of the deviation; log(x + √(x² + 1)) is asinh x, and three times as fast.
            unit = clip / math.sinh(bend)
            bent = values / unit
            places = torch.addcmul(one, bent, bent).sqrt_().add_(bent).log_().div_(curve).floor_().clamp_max_(half - 1)
            error = places.add_(0.5).mul_(curve).sinh_().mul_(unit).sub_(values).square_().mean(0)
            outermost = unit * torch.sinh(curve * (half - 0.5))
            for times, count in BEYOND:
                error += count / rows * (times * largest - outermost).clamp_min(0).square()
            best = torch.where(error < least, torch.stack([unit * curve * deviation, curve]), best)
            least = torch.minimum(error, least)
    return NARROWER * best[0], best[1]
