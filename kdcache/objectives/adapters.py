"""From the student's feature map to the teacher's shape: a learnt projection, and pooling of the larger map."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from kdcache.errors import UsageError

__all__ = ["Adapter", "pooled"]


class Adapter(nn.Module):
    """r(map) of FitNets (Romero et al. 2015, eq. 3): [B, Ds, *student space] -> [B, Dt, *shared space].

    A linear layer for vectors, a 1x1 convolution for maps, with bias, also where the widths agree: two networks
    have no reason to order their channels alike. Shapes are per sample, [D] or [D, H, W]. The shared space is the
    smaller of the two along each axis, none if one of them is a vector; `hint` pools the teacher's map to it.
    Features of any float dtype; computed in float32 outside autocast.
    """

    def __init__(self, student: tuple[int, ...], teacher: tuple[int, ...]) -> None:
        super().__init__()
        for owner, shape in (("student", student), ("teacher", teacher)):
            if len(shape) not in (1, 3) or min(shape) < 1:
                raise UsageError(
                    f"the {owner}'s feature has shape {list(shape)}; a hint compares vectors [D] and maps "
                    "[D, H, W]: choose another tap"
                )
        self.space = () if 1 in (len(student), len(teacher)) else tuple(map(min, student[1:], teacher[1:]))
        widths = student[0], teacher[0]
        self.project: nn.Module = nn.Conv2d(*widths, kernel_size=1) if self.space else nn.Linear(*widths)

    def forward(self, feature: Tensor) -> Tensor:
        projected: Tensor = self.project(pooled(feature.float(), self.space))
        return projected


def pooled(feature: Tensor, space: tuple[int, ...]) -> Tensor:
    """[B, D, *any] -> [B, D, *space] by adaptive average pooling; an empty space is the mean over the map."""
    if tuple(feature.shape[2:]) == space:
        return feature
    return F.adaptive_avg_pool2d(feature, (space[0], space[1])) if space else feature.mean(dim=(2, 3))
