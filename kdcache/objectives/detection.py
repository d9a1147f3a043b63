"""Losses of a dense detector: alone, from true boxes; and from a teacher that judges the same grid.

A dense detector gives, at each of P = h * w positions of a grid, row by row, logits of C + 1 classes with the
background at 0, and a box (`kdcache.objectives.sides`).
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from kdcache.codecs import QuantisedLogits
from kdcache.errors import UsageError
from kdcache.objectives.buckets import softened
from kdcache.objectives.matching import wide
from kdcache.objectives.sides import generalised_overlap, grid_centres

__all__ = ["detection", "detection_boxes", "kd_foreground"]


def detection(
    logits: Tensor,
    sides: Tensor,
    boxes: Tensor,
    classes: Tensor,
    *,
    stride: int,
    width: int,
    radius: float = 1.5,
    alpha: float = 0.25,
    gamma: float = 2.0,
    box_weight: float = 1.0,
) -> Tensor:
    """(sum over positions of the focal loss + box_weight * sum over positives of 1 - GIoU) / positives of the batch.

    logits [B, P, C + 1], sides [B, P, 4] of the student; boxes float [B, M, 4], corners x1 y1 x2 y2 in pixels; classes
    int64 [B, M] from 1, -1 for padding. The grid has ceil(width / stride) columns, `width` the input's in pixels.

    Assignment: a position is a candidate of a box if it lies inside the box and at most radius * stride from the box's
    middle in x and in y (centre sampling, FCOS, Tian et al. 2022); of several boxes the smallest has it; without
    a candidacy it is background. A box with no position of the grid inside trains nothing. Focal loss: -a (1 - q)^gamma
    log q, q the softmax probability of the assigned class, a = alpha for positives and 1 - alpha for the background
    (Lin et al. 2017, eq. 5, with one softmax for its sigmoids). GIoU: Rezatofighi et al. 2019. At least 1 positive is
    divided by, so a batch without any is the background's sum.
    """
    columns = _check_detection(logits, sides, boxes, classes, stride, width)
    if not 0 <= alpha <= 1 or gamma < 0 or box_weight < 0 or radius <= 0:
        raise UsageError(
            f"detection: alpha = {alpha} is a share from 0 to 1, gamma = {gamma} and box_weight = {box_weight} are at "
            f"least 0, and radius = {radius} is above 0"
        )
    log_q, sides = wide(logits).log_softmax(dim=2), wide(sides)
    centres = grid_centres(logits.shape[1], stride, columns, sides)
    label, targets = _assigned(boxes.to(sides.dtype), classes.long(), centres, radius * stride)
    positive = label > 0
    log_right = log_q.gather(2, label[:, :, None]).squeeze(2)
    share = torch.where(positive, alpha, 1 - alpha)
    # 1 - q from expm1: where q is nearly 1 the difference would be rounding.
    focal = -share * (-torch.expm1(log_right)).clamp(min=torch.finfo(log_q.dtype).tiny) ** gamma * log_right
    # At all positions: to pick the positives out would wait for the device.
    off = torch.where(positive, 1 - generalised_overlap(sides, targets), 0)
    return (focal.sum() + box_weight * off.sum()) / positive.sum().clamp(min=1)


def detection_boxes(
    sides: Tensor, teacher: Tensor, teacher_logits: Tensor, *, measure: Literal["giou", "l1"] = "giou"
) -> Tensor:
    """sum over positions of w d / sum of w, w = 1 - p(background) of the teacher at T = 1: how far its boxes are.

    sides, teacher [B, P, 4] on the same grid, teacher_logits [B, P, C + 1]. d is 1 - GIoU, 0 to 2, or for "l1" the mean
    |student - teacher| of the four distances, in pixels. 0 if the teacher sees nothing anywhere. Every position counts
    by how sure the teacher is that something is there, and the true boxes are not asked. This is regression of its
    boxes as in Chen et al. 2017, section 3.3, without their bound; localisation distillation (Zheng et al. 2022) is
    another thing: it compares distributions over the place of each edge, which this head does not have.
    """
    if sides.ndim != 3 or sides.shape != teacher.shape or sides.shape[-1] != 4:
        raise UsageError(
            f"detection_boxes: the student's boxes are {list(sides.shape)} and the teacher's {list(teacher.shape)}; "
            "both need [B, P, 4] on the same grid: give the student the teacher's stride"
        )
    if teacher_logits.ndim != 3 or teacher_logits.shape[:2] != sides.shape[:2]:
        raise UsageError(
            f"detection_boxes: boxes are {list(sides.shape)} and the teacher's logits {list(teacher_logits.shape)}; "
            "[B, P, C + 1] are needed"
        )
    ours = wide(sides)
    theirs = teacher.to(ours.dtype)
    weights = _foreground(teacher_logits.to(ours.dtype))
    off = 1 - generalised_overlap(ours, theirs) if measure == "giou" else (ours - theirs).abs().mean(dim=2)
    return _weighted_mean(off, weights)


def kd_foreground(
    student: Tensor, targets: Tensor | QuantisedLogits, *, temperature: float = 1.0, background: float = 0.0
) -> Tensor:
    """T^2 sum over rows of w KL(p_T || q_T) / sum of w, in nats; 0 if no row has a weight.

    `kd` over the positions of a dense detector, most of which are background: student and targets [B * P, C + 1] with
    the background at 0, p_T = softmax(targets / T), w = background + (1 - background) * (1 - p(background)), p of the
    teacher at T = 1. `background` is the weight of a row where the teacher is sure that nothing is: at 0 only
    positions where it sees something teach, at 1 this is `kd`. (Chen et al. 2017, section 3.2, weight the classes of a
    detector by constants, the background apart.) Sparse targets and random draws are refused.
    """
    if not isinstance(targets, Tensor | QuantisedLogits):
        raise UsageError(
            f"kd_foreground: it weights rows by the teacher's probability of class 0, which {type(targets).__name__} "
            "need not keep; dump the field as dense or quant"
        )
    if not 0 <= background <= 1:
        raise UsageError(f"kd_foreground: background = {background} is a weight from 0 to 1")
    log_q, log_p = softened(student, targets, temperature)
    teacher = targets.dense() if isinstance(targets, QuantisedLogits) else targets
    weights = background + (1 - background) * _foreground(teacher.to(log_p.dtype))
    return temperature**2 * _weighted_mean((log_p.exp() * (log_p - log_q)).sum(dim=1), weights.to(log_q.dtype))


def _foreground(logits: Tensor) -> Tensor:
    """1 - softmax(logits)[0], without losing small ones to rounding: [..., C + 1] -> [...]."""
    return logits.softmax(dim=-1)[..., 1:].sum(dim=-1)


def _weighted_mean(values: Tensor, weights: Tensor) -> Tensor:
    return (values * weights).sum() / weights.sum().clamp(min=torch.finfo(weights.dtype).tiny)


def _assigned(boxes: Tensor, classes: Tensor, centres: Tensor, reach: float) -> tuple[Tensor, Tensor]:
    """Of the box that has a position its class, int64 [B, P], 0 where none has it, and its sides [B, P, 4], 1 there."""
    if not boxes.shape[1]:
        return classes.new_zeros(len(boxes), len(centres)), boxes.new_ones(len(boxes), len(centres), 4)
    low, high = boxes[:, None, :, :2], boxes[:, None, :, 2:]
    point = centres[None, :, None, :]
    sides = torch.cat([point - low, high - point], dim=3)  # [B, P, M, 4]: l, t, r, b
    near = (point - (low + high) / 2).abs().amax(dim=3) <= reach
    fits = (sides.amin(dim=3) > 0) & near & (classes > 0)[:, None, :]
    area = (boxes[..., 2:] - boxes[..., :2]).prod(dim=2)[:, None, :]
    least, chosen = torch.where(fits, area, torch.inf).min(dim=2)
    targets = sides.gather(2, chosen[:, :, None, None].expand(-1, -1, 1, 4)).squeeze(2)
    has_box = least < torch.inf
    return torch.where(has_box, classes.gather(1, chosen), 0), torch.where(has_box[:, :, None], targets, 1.0)


def _check_detection(logits: Tensor, sides: Tensor, boxes: Tensor, classes: Tensor, stride: int, width: int) -> int:
    """The columns of the grid; UsageError unless everything fits together."""
    if stride < 1 or width < 1:
        raise UsageError(f"detection: stride = {stride} and width = {width} are in pixels, at least 1")
    if logits.ndim != 3 or logits.shape[2] < 2 or sides.shape != (*logits.shape[:2], 4):
        raise UsageError(
            f"detection: the student's logits are {list(logits.shape)} and its boxes {list(sides.shape)}; a dense "
            "detector gives [B, P, C + 1] and [B, P, 4]"
        )
    if classes.ndim != 2 or len(classes) != len(logits) or boxes.shape != (*classes.shape, 4):
        raise UsageError(
            f"detection: of {len(logits)} images the boxes are {list(boxes.shape)} and their classes "
            f"{list(classes.shape)}; [B, M, 4] and [B, M] are needed"
        )
    columns = -(-width // stride)
    if logits.shape[1] % columns:
        raise UsageError(
            f"detection: {logits.shape[1]} positions are no rows of {columns}, which width = {width} at stride = "
            f"{stride} makes: give the student's stride and the input's width"
        )
    # On an accelerator the check would wait for the device at every step.
    if classes.device.type == "cpu" and bool(((classes == 0) | (classes >= logits.shape[2])).any()):
        raise UsageError(
            f"detection: classes are {sorted(set(classes.flatten().tolist()))}, and the student's {logits.shape[2]} "
            f"outputs, of which 0 is the background, take 1 to {logits.shape[2] - 1}, or -1 for no box"
        )
    return columns
