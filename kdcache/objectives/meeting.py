"""Where two features of different shape can be compared: what is left of both, and how either is brought there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from kdcache.errors import UsageError

__all__ = ["Meeting", "check_met", "meeting", "pooled", "shared_space"]

Shape = tuple[int, ...]
_KINDS: dict[int, Literal["vectors", "tokens", "maps"]] = {1: "vectors", 2: "tokens", 3: "maps"}


@dataclass(frozen=True)
class Meeting:
    """`widths` are the channels of student and teacher, `space` the (H, W) of maps, () of vectors and tokens."""

    kind: Literal["vectors", "tokens", "maps"]
    widths: tuple[int, int]
    space: Shape

    def layer(self, inputs: int, outputs: int, *, bias: bool = True) -> nn.Module:
        """A linear map of the channels at every place: a 1x1 convolution of maps, else a linear layer."""
        if self.kind == "maps":
            return nn.Conv2d(inputs, outputs, kernel_size=1, bias=bias)
        return nn.Linear(inputs, outputs, bias=bias)

    def bring(self, feature: Tensor) -> Tensor:
        """Either side's feature with its own width, float32: the larger map average-pooled to `space`, maps and tokens
        that meet a vector averaged over their places, and all else as it is. Tokens may come as rows [N, D]."""
        feature = feature.float()
        if self.kind == "tokens":
            return feature
        if self.kind == "vectors" and feature.ndim == 3:
            return feature.mean(dim=1)
        return pooled(feature, self.space)


def meeting(student: Shape, teacher: Shape) -> Meeting:
    """Of two shapes per sample: [D], [D, H, W] or [L, D]. Maps meet on the smaller of the two along each axis.

    A vector meets a map, and the student's tokens meet a vector, as their mean over places. UsageError for any other
    pair, and for tokens of another length: token by token they are of the same text or image.
    """
    for owner, shape in (("student", student), ("teacher", teacher)):
        if len(shape) not in _KINDS or min(shape) < 1:
            raise UsageError(f"the {owner}'s feature has shape {list(shape)}; {_TAKES}")
    kinds = _KINDS[len(student)], _KINDS[len(teacher)]
    widths = tuple(
        shape[-1] if kind == "tokens" else shape[0] for shape, kind in zip((student, teacher), kinds, strict=True)
    )
    if kinds == ("tokens", "tokens"):
        if student[0] != teacher[0]:
            raise UsageError(
                f"the student's feature has {student[0]} tokens and the teacher's {teacher[0]}; tokens are compared "
                "one by one: tap both where they have as many"
            )
    elif "tokens" in kinds and kinds != ("tokens", "vectors"):
        raise UsageError(f"the student's feature has shape {list(student)} and the teacher's {list(teacher)}; {_TAKES}")
    kind = kinds[0] if kinds[0] == kinds[1] else "vectors"
    return Meeting(kind, (widths[0], widths[1]), shared_space(student[1:], teacher[1:]) if kind == "maps" else ())


_TAKES = (
    "a feature loss compares vectors [D] and maps [D, H, W], in any mixture, tokens [L, D] with tokens, and the "
    "student's tokens with a vector: choose another tap"
)


def shared_space(student: Shape, teacher: Shape) -> Shape:
    """The smaller of the two along each axis."""
    return tuple(map(min, student, teacher))


def pooled(feature: Tensor, space: Shape) -> Tensor:
    """[B, D, *any] -> [B, D, *space] by adaptive average pooling; an empty space is the mean over the map."""
    if tuple(feature.shape[2:]) == space:
        return feature
    return F.adaptive_avg_pool2d(feature, (space[0], space[1])) if space else feature.mean(dim=(2, 3))


def check_met(name: str, student: Tensor, teacher: Tensor) -> None:
    """UsageError naming the loss `name` unless both, brought together, have the same shape: the rows may differ."""
    if student.shape != teacher.shape:
        raise UsageError(
            f"{name}: the student's feature is {list(student.shape)} and the teacher's {list(teacher.shape)} where "
            "they meet: pass the features of the same rows, in the shapes that the loss was built from"
        )
