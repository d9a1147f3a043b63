"""Variational information distillation: the student's feature is to predict the teacher's, with a learnt doubt."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdcache.errors import UsageError
from kdcache.objectives.meeting import check_met, meeting
from kdcache.objectives.shapes import Shapes

__all__ = ["Vid"]


class Vid(nn.Module):
    """1/2 (log v_c + (t_c - m_c(s))^2 / v_c) in nats, without log(2 pi) / 2: mean over ALL elements; 0 without rows.

    VID (Ahn et al. 2019, section 2): the negative log-likelihood of the teacher's feature t under a normal
    distribution whose mean m is regressed from the student's and whose variance v is learnt for each channel of the
    teacher, v = softplus(a) + `smallest`, at first `variance`. It may go below 0, to log(smallest) / 2 at least. m is
    three 1x1 convolutions (linear layers for vectors and tokens) without bias, ReLU between them, `hidden` channels
    wide (0: as many as the teacher's). The larger map is average-pooled to the smaller's size.
    """

    def __init__(self, shapes: Shapes, *, hidden: int = 0, variance: float = 5.0, smallest: float = 1e-5) -> None:
        super().__init__()
        if hidden < 0:
            raise UsageError(f"vid: hidden = {hidden}: give the regressor's width, or 0 for the teacher's")
        if not 0 < smallest < variance < math.inf:
            raise UsageError(f"vid: variance = {variance} and smallest = {smallest}: 0 < smallest < variance < inf")
        self._meeting = meeting(shapes.student[0], shapes.teacher[0])
        ours, theirs = self._meeting.widths
        inner = hidden or theirs
        self.regressor = nn.Sequential(
            self._meeting.layer(ours, inner, bias=False),
            nn.ReLU(),
            self._meeting.layer(inner, inner, bias=False),
            nn.ReLU(),
            self._meeting.layer(inner, theirs, bias=False),
        )
        above = variance - smallest
        self.raw_variance = nn.Parameter(torch.full((theirs,), above + math.log(-math.expm1(-above))))
        self._smallest = smallest

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Scalar float32."""
        mean = self.regressor(self._meeting.bring(student))
        teacher = self._meeting.bring(teacher)
        check_met("vid", mean, teacher)
        variance = F.softplus(self.raw_variance) + self._smallest
        if self._meeting.kind == "maps":
            variance = variance[:, None, None]
        rows = variance.log() + (teacher - mean).square() / variance
        value: Tensor = rows.sum() / (2 * max(rows.numel(), 1))
        return value
