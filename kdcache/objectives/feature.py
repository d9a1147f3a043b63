"""Losses on feature maps."""

from __future__ import annotations

from torch import Tensor

from kdcache.errors import UsageError
from kdcache.objectives.adapters import pooled

__all__ = ["hint"]


def hint(student: Tensor, teacher: Tensor) -> Tensor:
    """(student - teacher)^2 in float32: mean over ALL elements, without a factor 1/2; 0 for a batch without rows.

    FitNets (Romero et al. 2015, eq. 3) times 2 / (elements of a map). `student` [B, D, *space] is what an `Adapter`
    made of the student's map; the teacher's [B, D, *larger] is average-pooled to the same space.
    """
    space = tuple(student.shape[2:])
    if (
        teacher.ndim not in (2, 4)
        or student.ndim not in (2, teacher.ndim)
        or teacher.shape[:2] != student.shape[:2]
        or any(theirs < ours for theirs, ours in zip(teacher.shape[2:], space, strict=False))
    ):
        raise UsageError(
            f"hint: the student's map is {list(student.shape)} and the teacher's {list(teacher.shape)}; "
            "put an Adapter built from both shapes behind the student's"
        )
    difference = student.float() - pooled(teacher.float(), space)
    return difference.square().sum() / max(difference.numel(), 1)
