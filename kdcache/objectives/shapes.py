"""What a loss with parameters of its own is built from: the shapes that meet in it, and the rows that it will see."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["Contest", "Shapes"]

Shape = tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Shapes:
    """Shapes per sample of every student's output or tap and of every stored field that the term reads, in order.

    `ids` int64 [N], ascending, are the ids of all samples that the fit may see; `classes` is C.
    """

    student: tuple[Shape, ...]
    teacher: tuple[Shape, ...]
    ids: NDArray[np.int64]
    classes: int


class Contest(NamedTuple):
    """What a loss with an opponent gives: the student's scalar loss, and the opponent's own.

    The first has no gradient for the opponent's parameters, the second none for the student's.
    """

    student: Tensor
    opponent: Tensor
