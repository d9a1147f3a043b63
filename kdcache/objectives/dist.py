"""DIST: the student's probabilities need only rise and fall with the teacher's, along classes and along the batch."""

from __future__ import annotations

import torch
from torch import Tensor

from kdcache.codecs import Targets
from kdcache.errors import UsageError
from kdcache.objectives.matching import check_temperature, wide
from kdcache.objectives.relations import check_together
from kdcache.objectives.whole import whole

__all__ = ["dist"]

_ROUNDING = 1e-6  # of a vector's length: what float32 leaves of a constant vector less its mean


def dist(
    student: Tensor, targets: Targets, *, temperature: float = 1.0, beta: float = 1.0, gamma: float = 1.0
) -> Tensor:
    """T^2 (beta (1 - mean over rows of r(q_i, p_i)) + gamma (1 - mean over classes of r(q^c, p^c))).

    Huang et al. 2022, section 4: q, p [B, C] are softmax(logits / T) of student and teacher, q_i a row (relations
    between classes), q^c a column (relations within a class over the batch), and r Pearson's correlation, so that
    either side's scale and shift along a row or column do not matter. Within 0 and 2 T^2 (beta + gamma). beta = gamma
    = 1, T = 1 are the paper's for ImageNet, 2, 2 and 4 its code's for CIFAR-100.

    The authors' code adds 1e-8 to the product of the two norms, which leaves out the columns of a class that no row
    of the batch gives some probability; here they count as the others. A vector that is constant but for rounding has
    no correlation: it counts as 0 and passes no gradient. Needs all classes: `SparseLogits` and `SampledLogits` are
    refused. UsageError for fewer than 2 rows, of which no column has a correlation.
    """
    check_temperature(temperature)
    for key, value in (("beta", beta), ("gamma", gamma)):
        if not 0 <= value < float("inf"):
            raise UsageError(f"dist: {key} = {value} is a weight: it must be a finite number, 0 or above")
    teacher = whole("dist", "it correlates the probabilities of every class over the batch", student, targets)
    check_together("dist", len(student), 2)
    q, p = torch.softmax(wide(student) / temperature, dim=1), torch.softmax(teacher / temperature, dim=1)
    inter = 1 - _correlation(q, p).mean()
    intra = 1 - _correlation(q.T, p.T).mean()
    return temperature**2 * (beta * inter + gamma * intra)


def _correlation(ours: Tensor, theirs: Tensor) -> Tensor:
    """Pearson's of each row of two [N, M]: float [N]; 0 where one of them is constant."""
    return (_centred(ours) * _centred(theirs)).sum(dim=1)


def _centred(rows: Tensor) -> Tensor:
    """Rows less their means, divided by their norms; zeros without a gradient for a row that is constant."""
    centred = rows - rows.mean(dim=1, keepdim=True)
    # A probability can be too small to be squared in float32.
    largest = centred.detach().abs().amax(dim=1, keepdim=True)
    constant = largest <= _ROUNDING * rows.detach().abs().amax(dim=1, keepdim=True)
    scaled = (centred / largest.masked_fill(constant, 1.0)).masked_fill(constant, 0.0)
    norms = torch.linalg.vector_norm(scaled, dim=1, keepdim=True)
    units: Tensor = scaled / norms.masked_fill(constant, 1.0)
    return units
