"""Neuron selectivity transfer: the student's channels are distributed over the image as the teacher's are."""

from __future__ import annotations

from torch import Tensor

from kdcache.errors import UsageError
from kdcache.objectives.directions import unit
from kdcache.objectives.matching import wide
from kdcache.objectives.meeting import pooled, shared_space

__all__ = ["nst"]


def nst(student: Tensor, teacher: Tensor) -> Tensor:
    """mean k(s, s') + mean k(t, t') - 2 mean k(s, t), k(a, b) = (a . b)^2: mean over rows, 0 without rows.

    NST (Huang and Wang 2017, section 4): the squared maximum mean discrepancy between the channels of both maps, each
    a vector over the H W positions of length 1, polynomial kernel of degree 2 with c = 0. Means are over all pairs, a
    channel with itself too: biased, and at least 0. Student [B, Ds, H, W], teacher [B, Dt, H', W']; no adapter, widths
    may differ. The larger map is average-pooled to the smaller's size along each axis. A channel of zeros counts as 0.

    With the maps as S [Ds, P] and T [Dt, P] it is |S'S / Ds - T'T / Dt|_F^2, over pairs of positions instead of pairs
    of channels; whichever are fewer are multiplied.
    """
    if student.ndim != 4 or teacher.ndim != 4 or len(student) != len(teacher):
        raise UsageError(
            f"nst: the student's feature is {list(student.shape)} and the teacher's {list(teacher.shape)}; pass maps "
            "[B, D, H, W] of the same rows"
        )
    space = shared_space(student.shape[2:], teacher.shape[2:])
    ours, theirs = (unit(pooled(wide(feature), space).flatten(2), 2) for feature in (student, teacher))
    widths, places = (ours.shape[1], theirs.shape[1]), ours.shape[2]
    if places * places * sum(widths) <= places * (widths[0] ** 2 + widths[1] ** 2 + widths[0] * widths[1]):
        apart = (ours.mT @ ours) / widths[0] - (theirs.mT @ theirs) / widths[1]
        found = apart.square().sum()
    else:
        pairs = ((ours, ours, 1), (theirs, theirs, 1), (ours, theirs, -2))
        terms = [sign * (a @ b.mT).square().sum() / (a.shape[1] * b.shape[1]) for a, b, sign in pairs]
        found = terms[0] + terms[1] + terms[2]
    return found / max(len(ours), 1)
