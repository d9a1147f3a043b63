"""Knowledge review: the student's deeper features, fused into its shallower ones, are compared with the teacher's."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdcache.errors import UsageError
from kdcache.objectives.meeting import check_met, pooled
from kdcache.objectives.shapes import Shapes

__all__ = ["Review", "hcl"]

Shape = tuple[int, ...]


class Review(nn.Module):
    """sum over levels of `hcl`(fused student, teacher): mean over rows within.

    ReviewKD (Chen et al. 2021, sections 3.2 and 3.3); 0 without rows. forward([student's maps], [teacher's maps]),
    as many of each, at least two, from shallow to deep; maps [B, D, H, W], and vectors [B, D] as maps of one place (the
    pooled feature is the authors' deepest level). From the deepest on, each level is projected to `width` channels
    (0: as many as the student's widest level, at most 512), joined with what the next deeper one passed up, and becomes
    what is compared, at the teacher's size and width. 1x1 and 3x3 convolutions without bias, batch normalisation: in
    training a level of one place needs two rows.
    """

    def __init__(self, shapes: Shapes, *, width: int = 0) -> None:
        super().__init__()
        if width < 0:
            raise UsageError(
                f"review: width = {width}: give the fusion's channels, or 0 for the student's widest level"
            )
        ours, theirs = ([_map(shape) for shape in side] for side in (shapes.student, shapes.teacher))
        if len(ours) != len(theirs) or len(ours) < 2:
            raise UsageError(
                f"review: {len(ours)} features of the student and {len(theirs)} of the teacher; give as many of each, "
                "at least two, from shallow to deep"
            )
        for side, levels in (("student", ours), ("teacher", theirs)):
            if any(deeper[1] * deeper[2] > level[1] * level[2] for level, deeper in pairwise(levels)):
                raise UsageError(
                    f"review: the {side}'s features are {[list(level) for level in levels]}, and a later one is "
                    "larger; give them from shallow to deep"
                )
        inner = width or min(512, max(level[0] for level in ours))
        deepest = len(ours) - 1
        self.fusions = nn.ModuleList(
            _Fusion(ours[level][0], inner, theirs[level][0], joins=level < deepest) for level in range(len(ours))
        )

    def forward(self, student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
        """Scalar float32."""
        if len(student) != len(self.fusions) or len(teacher) != len(self.fusions):
            raise UsageError(
                f"review: built for {len(self.fusions)} levels, called with {len(student)} of the student and "
                f"{len(teacher)} of the teacher: pass one list of each"
            )
        if not len(student[0]):  # statistics of no rows would spoil the running ones
            return torch.stack([level.float().sum() for level in student]).sum()
        passed: Tensor | None = None
        values = []
        for fusion, level, target in reversed(list(zip(self.fusions, student, teacher, strict=True))):
            level, target = _as_map(level.float()), _as_map(target.float())
            if self.training and len(level) * min(level.shape[2:].numel(), target.shape[2:].numel()) == 1:
                raise UsageError(
                    "review: a level of one place in a batch of one row is a single value for each channel, which "
                    "batch normalisation makes 0: let every micro-batch have two rows"
                )
            compared, passed = fusion(level, passed, target.shape[2:])
            values.append(hcl(compared, target))
        return torch.stack(values).sum()


def hcl(student: Tensor, teacher: Tensor) -> Tensor:
    """sum_k w_k mean((P_k student - P_k teacher)^2) / sum_k w_k, maps [B, D, H, W] of one shape; 0 without rows.

    The hierarchical context loss of ReviewKD: P_0 is the map itself with w = 1, then average-pooled to 4 x 4, 2 x 2 and
    1 x 1, as far as the map's shorter side is longer than that, with w halved each time, as in the authors' code. Means
    over all elements.
    """
    check_met("review", student, teacher)
    sizes = [size for size in (4, 2, 1) if size < min(student.shape[2:])]
    difference = student - teacher  # pooling is linear
    total, weights, weight = _square_mean(difference), 1.0, 1.0
    for size in sizes:
        weight /= 2
        weights += weight
        total = total + weight * _square_mean(pooled(difference, (size, size)))
    return total / weights


class _Fusion(nn.Module):
    """Attention-based fusion of one level with what the deeper ones passed up."""

    def __init__(self, ours: int, inner: int, theirs: int, *, joins: bool) -> None:
        super().__init__()
        self.enter = nn.Sequential(nn.Conv2d(ours, inner, 1, bias=False), nn.BatchNorm2d(inner))
        self.gates = nn.Conv2d(2 * inner, 2, 1) if joins else None
        self.leave = nn.Sequential(nn.Conv2d(inner, theirs, 3, padding=1, bias=False), nn.BatchNorm2d(theirs))
        for convolution in (self.enter[0], self.leave[0]):
            assert isinstance(convolution, nn.Conv2d)
            nn.init.kaiming_uniform_(convolution.weight, a=1)

    def forward(self, level: Tensor, passed: Tensor | None, space: Shape) -> tuple[Tensor, Tensor]:
        """[B, Ds, h, w], the deeper levels' [B, inner, *any] -> what is compared [B, Dt, *space], and what goes up."""
        x: Tensor = self.enter(level)
        if self.gates is not None and passed is not None:
            deeper = _resized(passed, x.shape[2:])
            gates = self.gates(torch.cat([x, deeper], dim=1)).sigmoid()
            x = x * gates[:, :1] + deeper * gates[:, 1:]
        x = _resized(x, space)
        return self.leave(x), x


def _map(shape: Shape) -> Shape:
    if len(shape) not in (1, 3):
        raise UsageError(f"review: a feature has shape {list(shape)}; it takes maps [D, H, W] and vectors [D]")
    return (*shape, 1, 1)[:3]


def _as_map(feature: Tensor) -> Tensor:
    return feature[:, :, None, None] if feature.ndim == 2 else feature


def _resized(feature: Tensor, space: Shape) -> Tensor:
    """To the nearest position's value."""
    return feature if feature.shape[2:] == space else F.interpolate(feature, size=tuple(space), mode="nearest")


def _square_mean(values: Tensor) -> Tensor:
    return values.square().sum() / max(values.numel(), 1)
