"""One case of the conformance class for losses: a loss, an independent float64 reference, and how to make inputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

__all__ = ["Case"]


@dataclass(frozen=True)
class Case:
    """`function(*student, *rest, **options)` and `reference` (same call) give a scalar.

    `reference` is written from the paper's formula for float64 tensors, in torch so that it has gradients, but another
    way than the function is (plain loops over samples and pairs where the function has products of matrices); it uses
    nothing of kdcache.
    `make(generator, rows)` draws (student tensors, the rest), float32; every tensor's first axis is the batch unless it
    is listed in neither of the two. `student` and `rest` items may be lists of tensors.
    """

    name: str
    function: Callable[..., Tensor]
    reference: Callable[..., Tensor]
    make: Callable[[torch.Generator, int], tuple[list[Any], list[Any]]]
    options: Mapping[str, Any] = field(default_factory=dict)
    permutes: bool = True  # the same value whatever the order of the batch
    smallest: int = 1  # fewer rows than this are a UsageError that says why
    half: bool = True  # finite, with finite gradients, on float16 and bfloat16 student tensors of ordinary size
