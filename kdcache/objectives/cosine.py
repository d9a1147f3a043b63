"""The directions of hidden states, as DistilBERT aligns them."""

from __future__ import annotations

from torch import Tensor, nn

from kdcache.objectives.adapters import Adapter
from kdcache.objectives.directions import unit
from kdcache.objectives.meeting import check_met, meeting
from kdcache.objectives.shapes import Shapes

__all__ = ["Cosine"]


class Cosine(nn.Module):
    """1 - cos(student, teacher) over the channels: mean over rows, and over tokens or positions; 0 without rows.

    The third term of DistilBERT (Sanh et al. 2019, section 2). From 0 (same direction) to 2; lengths do not matter, and
    a vector of zeros counts as orthogonal. Vectors [B, D]; tokens [B, L, D], or as rows [N, D]; maps [B, D, H, W], the
    larger average-pooled to the smaller's size. The student's goes through an `Adapter` only if the widths differ.
    """

    def __init__(self, shapes: Shapes) -> None:
        super().__init__()
        ours, theirs = shapes.student[0], shapes.teacher[0]
        self._meeting = meeting(ours, theirs)
        widths = self._meeting.widths
        self.adapter = Adapter(ours, theirs) if widths[0] != widths[1] else None

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Scalar float32."""
        student = self._meeting.bring(student) if self.adapter is None else self.adapter(student)
        teacher = self._meeting.bring(teacher)
        check_met("cosine", student, teacher)
        axis = 1 if self._meeting.kind == "maps" else -1
        cosines = (unit(student, axis) * unit(teacher, axis)).sum(dim=axis)
        return (1 - cosines).sum() / max(cosines.numel(), 1)
