"""Responses before the ReLU: the teacher's positive ones are copied, its negative ones need only stay negative."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from kdcache.errors import UsageError
from kdcache.objectives.adapters import Adapter
from kdcache.objectives.meeting import check_met, meeting
from kdcache.objectives.shapes import Shapes

__all__ = ["Margin"]


class Margin(nn.Module):
    """d(max(t, m_c), r(s)): mean over ALL elements, 0 without rows; d(t, s) = 0 if s <= t <= 0, else (t - s)^2.

    OFD (Heo et al. 2019, "A comprehensive overhaul of feature distillation", section 3): margin ReLU of the
    teacher, partial L2. Both features are tapped BEFORE a ReLU. r is an `Adapter` (the authors add a batch
    normalisation, and sum where this is a mean). The larger map is average-pooled to the smaller's size.

    The margin m_c <= 0 is the mean of the teacher's negative responses in channel c, 0 where there is none. The paper
    computes it from the batch normalisation in front of the ReLU; a store has no layers, so here it is the mean over
    all rows that the loss has seen in training, those of this batch included: after one epoch, the dataset's own. The
    buffers `margin` and `seen` are saved with the checkpoint. Of several processes the first one's count, as with the
    statistics of a batch normalisation.
    """

    margin: Tensor
    seen: Tensor

    def __init__(self, shapes: Shapes) -> None:
        super().__init__()
        self._meeting = meeting(shapes.student[0], shapes.teacher[0])
        self.adapter = Adapter(shapes.student[0], shapes.teacher[0])
        width = self._meeting.widths[1]
        self.register_buffer("margin", torch.zeros(width))
        self.register_buffer("seen", torch.zeros(width, dtype=torch.int64))  # float32 could not count beyond 2^24
        self._checked = False

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Scalar float32. UsageError if the first batch has no response below 0."""
        student, teacher = self.adapter(student), self._meeting.bring(teacher)
        check_met("margin", student, teacher)
        if self.training:
            self._see(teacher)
        margin = self.margin[:, None, None] if self._meeting.kind == "maps" else self.margin
        target = torch.maximum(teacher, margin)
        apart = (student - target).square()
        partial = torch.where((student > target) | (target > 0), apart, 0)
        return partial.sum() / max(partial.numel(), 1)

    @torch.no_grad()
    def _see(self, teacher: Tensor) -> None:
        """Add the negative responses of [B, D, *space] or [..., D] to the running means."""
        channel = 1 if self._meeting.kind == "maps" else teacher.ndim - 1
        others = [axis for axis in range(teacher.ndim) if axis != channel]
        count, total = (teacher < 0).sum(dim=others), teacher.clamp(max=0).sum(dim=others)
        self.seen += count
        # One at a time, not a total over epochs: a float32 sum of millions of responses would stop growing.
        self.margin += (total - count * self.margin) / self.seen.clamp(min=1)
        if not self._checked and len(teacher):
            self._checked = True  # once: on an accelerator it waits for the device
            if not bool(self.seen.any()):
                raise UsageError(
                    "margin: no response of the teacher is below 0, so its field was tapped behind a ReLU; "
                    "tap the layer in front of it, in the teacher and in the student"
                )
