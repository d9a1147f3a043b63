"""Probabilistic knowledge transfer: whom of the batch a sample would choose as its neighbour."""

from __future__ import annotations

from torch import Tensor

from kdcache.objectives.matching import wide
from kdcache.objectives.relations import rows_together, unit

__all__ = ["pkt"]

EPSILON = 1e-7


def pkt(student: Tensor, teacher: Tensor) -> Tensor:
    """p_t log((p_t + 1e-7) / (p_s + 1e-7)), p(j | i) = K_ij / sum_j K_ij, K = (1 + cosine) / 2: mean over ALL B x B.

    Passalis & Tefas 2018, section 3, cosine kernel for both networks. Features of any widths, maps flattened; the
    length of a row does not matter, and one of zeros has K = 1/2 with all. UsageError for a batch of 1.

    As the authors' code has it, and RepDistiller, mdistiller and torchdistill after it: a sample is among its own
    neighbours (the paper leaves the diagonal out), the 1e-7 stands in the logarithm, and the mean over B x B is taken
    (the paper sums), so that the value is small: RepDistiller gives it a weight of 30000.
    """
    ours, theirs = (_neighbours(rows) for rows in rows_together("pkt", student, teacher, 2))
    return (theirs * ((theirs + EPSILON) / (ours + EPSILON)).log()).mean().to(wide(student).dtype)


def _neighbours(rows: Tensor) -> Tensor:
    units = unit(rows)
    # A divergence of near distributions is what is left of terms a thousand times larger; [B, B] is small.
    kernel = (1 + (units @ units.T).double()) / 2
    return kernel / kernel.sum(dim=1, keepdim=True)
