"""Similarity-preserving distillation: which samples of a batch activate a layer alike."""

from __future__ import annotations

from torch import Tensor

from kdcache.objectives.relations import rows_together, unit

__all__ = ["sp"]


def sp(student: Tensor, teacher: Tensor) -> Tensor:
    """|G_s - G_t|_F^2 / B^2, G = Q Q^T with each row divided by its 2-norm: mean over ALL B x B pairs.

    Tung & Mori 2019, eqs. 1 to 3, for one pair of layers. Q [B, D H W] is the features, maps flattened, of any widths.
    The scale of a whole side and its rotation do not matter, the relative lengths of its rows do. A row of zeros stays
    zeros in G. UsageError for a batch of 1.

    RepDistiller, mdistiller and torchdistill (reduction "batchmean") do the same, the first with a weight of 3000.
    """
    ours, theirs = rows_together("sp", student, teacher, 2)
    return (unit(ours @ ours.T) - unit(theirs @ theirs.T)).square().mean()
