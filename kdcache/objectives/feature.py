"""The plainest loss on features: the squared distance, behind an adapter."""

from __future__ import annotations

from torch import Tensor, nn

from kdcache.errors import UsageError
from kdcache.objectives.adapters import Adapter, Pool
from kdcache.objectives.meeting import pooled
from kdcache.objectives.shapes import Shapes

__all__ = ["Hint", "hint"]


def hint(student: Tensor, teacher: Tensor) -> Tensor:
    """(student - teacher)^2 in float32: mean over ALL elements, without a factor 1/2; 0 for a batch without rows.

    FitNets (Romero et al. 2015, eq. 3) times 2 / (elements of a map). `student` [B, D, *space] is what an `Adapter`
    made of the student's map; the teacher's [B, D, *larger] is average-pooled to the same space. Tokens [B, L, D] (or
    as rows [N, D]) are compared one by one.
    """
    space = tuple(student.shape[2:])
    if (
        teacher.ndim not in (2, 3, 4)
        or student.ndim not in ((3,) if teacher.ndim == 3 else (2, teacher.ndim))
        or teacher.shape[:2] != student.shape[:2]
        or (teacher.ndim == 3 and teacher.shape != student.shape)
        or any(theirs < ours for theirs, ours in zip(teacher.shape[2:], space, strict=False))
    ):
        raise UsageError(
            f"hint: the student's map is {list(student.shape)} and the teacher's {list(teacher.shape)}; "
            "put an Adapter built from both shapes behind the student's"
        )
    difference = student.float() - pooled(teacher.float(), space)
    return difference.square().sum() / max(difference.numel(), 1)


class Hint(nn.Module):
    """(r(student) - teacher)^2: mean over ALL elements, r a learnt `Adapter` to the teacher's width.

    FitNets (Romero et al. 2015, eq. 3); see `hint`, which this is with the adapter in front. `pool` says how a map or
    tokens meet a teacher's vector: by their mean, or by attention with a learnt query.
    """

    def __init__(self, shapes: Shapes, *, pool: Pool = "mean") -> None:
        super().__init__()
        self.adapter = Adapter(shapes.student[0], shapes.teacher[0], pool=pool)

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        return hint(self.adapter(student), teacher)
