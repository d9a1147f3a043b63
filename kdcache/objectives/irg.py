"""Instance relationship graphs: samples, the distances between them, and how far each goes from layer to layer."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from kdcache.errors import UsageError
from kdcache.objectives.matching import wide
from kdcache.objectives.relations import check_together, rows_together

__all__ = ["irg"]


def irg(
    students: Sequence[Tensor],
    teachers: Sequence[Tensor],
    *,
    w_vertex: float = 0.1,
    w_edge: float = 5.0,
    w_transform: float = 5.0,
) -> Tensor:
    """w_vertex V + w_edge E + w_transform T over several levels, shallowest first, and the vertices as the last item.

    Liu et al. 2019, section 3. Both lists have the same length; all levels but the last are vectors [B, D] or maps
    [B, D, H, W] of any widths, the last is the same shape on both sides, usually the logits [B, C].

    V: (z_s - z_t)^2 of the last item, mean over ALL its elements. E: (A_s - A_t)^2, A_ij = |x_i - x_j|^2 / the largest
    of the batch, of every other level, maps flattened: mean over ALL B x B pairs and over levels. T: (t_s - t_t)^2,
    t_i = |y_i - x_i|^2 / the largest of the batch, from a level x to the next y: mean over rows and over steps. Where x
    and y differ in size, both are average-pooled over channels and space to the smaller of the two along each axis,
    since a distance between layers of unequal width is undefined. A step counts if its levels are both maps or both
    vectors in either network: a vector is mostly its map pooled, at no distance from it.

    The scale of a level does not matter to E, nor its rotation and translation; the common scale of two not to T.
    UsageError for fewer than three rows: the one distance of two is always the largest.

    KD-Zoo has this for two maps, a vector and the logits, without the vector's step as here, with these weights; it
    halves the channels of y by means of pairs whatever they are, which is the same where y has twice as many. The
    original is in Caffe, and the other libraries have none.
    """
    _check(students, teachers, (w_vertex, w_edge, w_transform))
    loss = (wide(students[-1]) - wide(teachers[-1])).square().mean() * w_vertex
    levels = list(zip(students[:-1], teachers[:-1], strict=True))
    if w_edge:
        edges = [[_edges(rows) for rows in rows_together("irg", *level, 3)] for level in levels]
        loss = loss + w_edge * _apart(edges)
    if w_transform:
        pairs = [(x, y) for x, y in itertools.pairwise(levels) if [z.ndim for z in x] == [z.ndim for z in y]]
        if not pairs:
            raise UsageError(
                f"irg: no two neighbours of the {len(levels)} levels before the last are both maps or both vectors, so "
                "there is no transformation between layers: give two such, or set w_transform = 0"
            )
        steps = [[_steps(wide(x), wide(y)) for x, y in zip(*pair, strict=True)] for pair in pairs]
        loss = loss + w_transform * _apart(steps)
    return loss


def _apart(relations: Sequence[Sequence[Tensor]]) -> Tensor:
    """The mean over levels of the mean squared difference."""
    return torch.stack([(ours - theirs).square().mean() for ours, theirs in relations]).mean()


def _edges(rows: Tensor) -> Tensor:
    """[B, B] squared distances over the largest. The mean is taken off first: inner products of rows far from the
    origin lose the distances between them."""
    centred = rows - rows.mean(dim=0)
    products = centred @ centred.T
    lengths = products.diagonal()
    squared = (lengths[:, None] + lengths - 2 * products).fill_diagonal_(0.0)
    return _over_largest(squared.clamp(min=0.0))


def _steps(first: Tensor, second: Tensor) -> Tensor:
    """[B] squared distances from a layer to the next, over the largest."""
    if first.ndim == 2:
        first, second = first[..., None, None], second[..., None, None]
    depth, height, width = map(min, first.shape[1:], second.shape[1:])
    size = depth, height, width
    return _over_largest((_shrunk(second, size) - _shrunk(first, size)).square().flatten(1).sum(dim=1))


def _shrunk(feature: Tensor, size: tuple[int, int, int]) -> Tensor:
    """[B, D, H, W] average-pooled to `size`, channels as another axis of space."""
    return feature if feature.shape[1:] == size else F.adaptive_avg_pool3d(feature[:, None], size).squeeze(1)


def _over_largest(values: Tensor) -> Tensor:
    """All 0 stay so."""
    largest = values.amax()
    return values / largest.masked_fill(largest == 0, 1.0)


def _check(students: Sequence[Tensor], teachers: Sequence[Tensor], weights: tuple[float, ...]) -> None:
    if len(students) != len(teachers) or len(students) < 2:
        raise UsageError(
            f"irg: {len(students)} of the student's tensors and {len(teachers)} of the teacher's: give as many "
            "of each, one level or more and then the logits"
        )
    if not all(0 <= weight < math.inf for weight in weights) or not any(weights):
        raise UsageError(
            "irg: w_vertex, w_edge, w_transform = {}, {}, {}: finite numbers, none below 0, not all 0".format(*weights)
        )
    shapes = [[list(tensor.shape) for tensor in tensors] for tensors in (students, teachers)]
    if any(len(shape) not in (2, 4) or shape[0] != shapes[0][-1][0] for side in shapes for shape in side):
        raise UsageError(
            f"irg: the student's tensors are {shapes[0]} and the teacher's {shapes[1]}; it compares vectors [B, D] and "
            "maps [B, D, H, W] of the same rows: choose other taps or fields"
        )
    if shapes[0][-1] != shapes[1][-1]:
        raise UsageError(
            f"irg: the vertices, last of the lists, are {shapes[0][-1]} of the student's and {shapes[1][-1]} of the "
            "teacher's; they are compared one by one: end both lists with the logits"
        )
    check_together("irg", shapes[0][-1][0], 3)
