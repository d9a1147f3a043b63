"""From the student's feature to the teacher's shape: a learnt projection, and pooling of what is larger."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from kdcache.errors import UsageError
from kdcache.objectives.meeting import meeting

__all__ = ["Adapter", "Pool"]

Pool = Literal["mean", "attention"]


class Adapter(nn.Module):
    """r(map) of FitNets (Romero et al. 2015, eq. 3): [B, Ds, *student space] -> [B, Dt, *shared space].

    A linear layer for vectors and tokens, a 1x1 convolution for maps, with bias, also where the widths agree: two
    networks have no reason to order their channels alike. Shapes are per sample, [D], [D, H, W] or [L, D]. The shared
    space is the smaller of the two along each axis, none if one of them is a vector; `hint` pools the teacher's map to
    it. Tokens [L, D] keep their length, and may come as rows [N, D]. Features of any float dtype; computed in float32
    outside autocast.

    Where the student's map or tokens meet a vector, `pool` says how: "mean", or "attention", which learns the weights:
    sum_i a_i x_i, a = softmax_i(q . x_i / sqrt(Ds)) with a learnt query q [Ds]; q = 0 at first, which is the mean.
    """

    def __init__(self, student: tuple[int, ...], teacher: tuple[int, ...], *, pool: Pool = "mean") -> None:
        super().__init__()
        self._meeting = meeting(student, teacher)
        if pool == "attention" and (self._meeting.kind != "vectors" or len(student) == 1):
            raise UsageError(
                f"pool = \"attention\" makes one vector of the student's map or tokens; here the student's feature is "
                f"{list(student)} and the teacher's {list(teacher)}: leave it out"
            )
        widths = self._meeting.widths
        self.query = nn.Parameter(torch.zeros(widths[0])) if pool == "attention" else None
        self.project = self._meeting.layer(*widths)

    def forward(self, feature: Tensor) -> Tensor:
        brought = self._meeting.bring(feature) if self.query is None else _attended(feature.float(), self.query)
        projected: Tensor = self.project(brought)
        return projected


def _attended(feature: Tensor, query: Tensor) -> Tensor:
    """[B, D, H, W] or [B, L, D] -> [B, D], weighted by softmax over places of their products with the query [D]."""
    places = feature.flatten(2).mT if feature.ndim == 4 else feature
    weights = (places @ query / query.numel() ** 0.5).softmax(dim=1)
    return torch.einsum("bl,bld->bd", weights, places)
