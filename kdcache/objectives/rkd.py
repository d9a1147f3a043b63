"""Relational knowledge distillation: the distances and angles between the samples of a batch."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from kdcache.objectives.relations import rows_together, unit

__all__ = ["rkd_angle", "rkd_distance"]

_CHUNK_VALUES = 1 << 22  # of one tensor over the triples, 16 MiB in float32


def rkd_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """Huber(psi_s(i, j) - psi_t(i, j)), psi(i, j) = |x_i - x_j| / mean distance: mean over ALL B x B pairs.

    Park et al. 2019, eqs. 5 to 8; Huber(d) = d^2 / 2 below 1, |d| - 1/2 above. The mean is over the pairs of unequal
    rows, each network's own, and the student's is differentiated too. Features of any widths, maps flattened. Scale,
    rotation and translation of either side do not matter. Two rows that are equal have distance 0 and no gradient
    between them. UsageError for a batch of 2, whose one distance is always its own mean.

    The paper sums over pairs and weighs it 1 to 2 against `rkd_angle`; its authors' code, RepDistiller, mdistiller and
    torchdistill take the mean over B x B, the diagonal with it, as here, with weights 25 and 50. They give equal rows
    a distance of 1e-6 and count them in the mean; nothing else differs.
    """
    ours, theirs = rows_together("rkd_distance", student, teacher, 3)
    return F.smooth_l1_loss(_relative_distances(ours), _relative_distances(theirs))


def rkd_angle(student: Tensor, teacher: Tensor) -> Tensor:
    """Huber(cos_s(i, j, k) - cos_t(i, j, k)), the cosine of the angle at x_j between x_i and x_k: mean over ALL B^3.

    Park et al. 2019, eqs. 9 and 10: cos(i, j, k) = <e_ij, e_kj>, e_ij = (x_i - x_j) / |x_i - x_j|. Features of any
    widths, maps flattened. Scale, rotation and translation of either side do not matter. Where two of the three rows
    are equal, a triple's cosine is 0, without gradient. Anchors j are taken in chunks and computed anew when going
    backward, so that memory grows as B (B + D) where B is large. UsageError for fewer than three rows.

    The paper sums over triples; its authors' code, RepDistiller, mdistiller and torchdistill take the mean over B^3,
    triples of fewer than three samples with them, as here, with a weight of 50. They divide by max(|x_i - x_j|, 1e-12),
    which multiplies the gradient of rows that are equal by up to 1e12, and keep tensors of B x B x D and B^3 values.
    """
    ours, theirs = rows_together("rkd_angle", student, teacher, 3)
    rows = len(ours)
    anchors = max(1, _CHUNK_VALUES // (rows * max(rows, ours.shape[1], theirs.shape[1])))
    if anchors >= rows:
        return _angle_sum(ours, theirs, 0, rows) / rows**3
    sums: list[Tensor] = [
        checkpoint(_angle_sum, ours, theirs, first, first + anchors, use_reentrant=False, preserve_rng_state=False)
        for first in range(0, rows, anchors)
    ]
    return torch.stack(sums).sum() / rows**3


def _relative_distances(rows: Tensor) -> Tensor:
    """[B, B], divided by the mean of those above 0; all 0 if none is."""
    # Not by way of the inner products, which lose the distance of two rows that are near each other to rounding.
    distances = torch.cdist(rows, rows, compute_mode="donot_use_mm_for_euclid_dist")
    count = (distances > 0).sum()
    mean = distances.sum() / count.clamp(min=1)
    return distances / mean.masked_fill(count == 0, 1.0)


def _angle_sum(student: Tensor, teacher: Tensor, first: int, last: int) -> Tensor:
    """Over all triples whose anchor is one of the rows `first` to `last` - 1."""
    return F.smooth_l1_loss(_cosines(student, first, last), _cosines(teacher, first, last), reduction="sum")


def _cosines(rows: Tensor, first: int, last: int) -> Tensor:
    """[anchors, B, B]."""
    directions = unit(rows - rows[first:last, None])
    return directions @ directions.transpose(1, 2)
