"""Feature maps of detectors and segmenters: objects and background weighted apart, each by its own area."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from kdcache.errors import UsageError
from kdcache.objectives.adapters import Adapter
from kdcache.objectives.meeting import check_met, meeting, pooled
from kdcache.objectives.shapes import Shapes

__all__ = ["MaskedMap", "touched"]


class MaskedMap(nn.Module):
    """foreground sum_ij w_ij e_ij / sum w + background sum_ij (1 - m_ij) e_ij / sum (1 - m): mean over rows.

    e_ij = mean_c (r(s) - t)^2 at position ij, r an `Adapter`; 0 without rows. m_ij in 0 .. 1 is the share of the
    position that is object, and w = m unless `by_object`. The sums are over the positions of one map, so that objects
    and background count each by its own area, as in the focal distillation of FGD (Yang et al. 2022, section 3.1); its
    attention masks are left out, and the mean over channels stands for its sum. A part without area adds 0: an image
    without objects is all background. forward(student's map, teacher's map, region), on the smaller map's positions.

    The region is a mask [B, H', W'] of any size, float32 in 0 .. 1 or integers (not 0 = object), average-pooled to
    the map's positions; or, with `stride`, boxes [B, M, 4] as x1, y1, x2, y2 in pixels of the input,
    rows with x2 <= x1 or y2 <= y1 (such as all -1) empty. `stride` is the pixels of a position of the STUDENT's map. A
    position is object if a box covers any part of it. With by_object = true, w_ij is the largest 1 / area of the boxes
    that cover it, as in FGD, so that a small object counts as much as a large one.
    """

    def __init__(
        self,
        shapes: Shapes,
        *,
        foreground: float = 1.0,
        background: float = 1.0,
        stride: float = 0.0,
        by_object: bool = False,
    ) -> None:
        super().__init__()
        for key, value in (("foreground", foreground), ("background", background), ("stride", stride)):
            if not 0 <= value < math.inf:
                raise UsageError(f"masked_map: {key} = {value}: give a finite number, 0 or more")
        if len(shapes.teacher) != 2:
            raise UsageError(
                f"masked_map: it reads two fields, the teacher's map and a mask or boxes, and was given "
                f"{len(shapes.teacher)}: name both"
            )
        ours, (theirs, region) = shapes.student[0], shapes.teacher
        found = meeting(ours, theirs)
        if found.kind != "maps":
            raise UsageError(
                f"masked_map: the student's feature is {list(ours)} and the teacher's {list(theirs)}; it takes maps "
                "[D, H, W]"
            )
        if len(region) != 2 or (region[1] == 4) != bool(stride):
            raise UsageError(
                f"masked_map: the region's field is {list(region)} a row and stride = {stride:g}; give a mask [H, W] "
                "without stride, or boxes [M, 4] with the pixels of a position of the student's map as stride"
            )
        if by_object and not stride:
            raise UsageError("masked_map: by_object = true needs boxes; a mask does not tell its objects apart")
        self.adapter = Adapter(ours, theirs)
        self._meeting, self._by_object = found, by_object
        self._foreground, self._background = foreground, background
        self._cell = tuple(stride * size / met for size, met in zip(ours[1:], found.space, strict=True))

    def forward(self, student: Tensor, teacher: Tensor, region: Tensor) -> Tensor:
        """Scalar float32."""
        student, teacher = self.adapter(student), self._meeting.bring(teacher)
        check_met("masked_map", student, teacher)
        if len(region) != len(student) or region.ndim != 3:
            raise UsageError(
                f"masked_map: {len(student)} rows of maps, and the region is {list(region.shape)}: "
                "pass the masks or boxes of the same rows"
            )
        error = (student - teacher).square().mean(dim=1)
        mask, weight = self._regions(region)
        value = self._foreground * _weighted(error, weight) + self._background * _weighted(error, 1 - mask)
        return value.sum() / max(len(error), 1)

    @torch.no_grad()
    def _regions(self, region: Tensor) -> tuple[Tensor, Tensor]:
        """m and w, float32 [B, H, W] on the map's positions."""
        height, width = self._meeting.space
        if not self._cell[0]:
            if not region.is_floating_point():
                region = region != 0
            elif region.device.type == "cpu" and bool(((region < 0) | (region > 1)).any()):
                raise UsageError(
                    f"masked_map: the mask runs from {region.min():g} to {region.max():g}; as float32 it is the share "
                    "of a pixel that is object, 0 to 1: store other values as uint8"
                )
            mask = pooled(region.float()[:, None], (height, width)).squeeze(1)
            return mask, mask
        inside = touched(region, (height, width), self._cell)
        mask = inside.any(dim=1).float()
        if not self._by_object:
            return mask, mask
        x1, y1, x2, y2 = region.float().unbind(dim=2)
        # Ratios of areas are all that is left of it after normalisation, but no box may have none.
        share = 1 / ((x2 - x1) * (y2 - y1)).clamp(min=torch.finfo(torch.float32).tiny)
        return mask, (inside * share[:, :, None, None]).amax(dim=1)


def touched(boxes: Tensor, space: tuple[int, int], cell: tuple[float, ...]) -> Tensor:
    """Which positions each box covers a part of: boxes [B, M, 4] in pixels -> bool [B, M, H, W].

    Position (i, j) is [i * cell[0], (i + 1) * cell[0]) x [j * cell[1], (j + 1) * cell[1]) pixels. Empty boxes: none.
    """
    x1, y1, x2, y2 = boxes.float().unbind(dim=2)
    rows, columns = (torch.arange(size, device=boxes.device) for size in space)
    down = (y1[..., None] < (rows + 1) * cell[0]) & (y2[..., None] > rows * cell[0])
    across = (x1[..., None] < (columns + 1) * cell[1]) & (x2[..., None] > columns * cell[1])
    full = (x2 > x1) & (y2 > y1)
    return (down & full[..., None])[..., None] & across[:, :, None]


def _weighted(error: Tensor, weight: Tensor) -> Tensor:
    """The weighted mean over positions [B], 0 where all weights are."""
    area = weight.sum(dim=(1, 2))
    return (error * weight).sum(dim=(1, 2)) / torch.where(area > 0, area, 1)
