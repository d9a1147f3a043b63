"""Losses on values: a network's output against numbers that the store has, or against the teacher's raw outputs.

The student's output and the target have as many values a row, in whatever shape ([B, H], [B, C, H, W], ...); an integer
target (the `input` of a reconstruction) counts as its numbers. All is in float32 (float64 if the student is). A NaN in
the target is not known: it adds neither to the sum nor to the count. The mean is over ALL known values of the batch, 0
if there is none. Logits of classes have `mse_logits`, which knows of sparse targets.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from kdcache.errors import UsageError
from kdcache.objectives.matching import wide

__all__ = ["huber", "l1", "mse"]


def mse(student: Tensor, target: Tensor) -> Tensor:
    """(student - target)^2: mean over all known values, without a factor 1/2.

    On a teacher's raw outputs that of Ba & Caruana 2014, eq. 1, times 2 / (values of a row).
    """
    ours, theirs, count = _known("mse", student, target)
    return (ours - theirs).square().sum() / count


def l1(student: Tensor, target: Tensor) -> Tensor:
    """|student - target|: mean over all known values. Its gradient is 0 where the two are equal."""
    ours, theirs, count = _known("l1", student, target)
    return (ours - theirs).abs().sum() / count


def huber(student: Tensor, target: Tensor, *, delta: float = 1.0) -> Tensor:
    """d^2 / 2 where |d| <= delta, else delta (|d| - delta / 2), d = student - target: mean over all known values.

    Huber 1964, with delta > 0 in the target's units. As delta grows it tends to `mse` / 2, and huber / delta to `l1` as
    it shrinks.
    """
    if not 0 < delta < float("inf"):
        raise UsageError(f"huber: delta = {delta}: a finite number above 0; for the ends take l1 or mse")
    ours, theirs, count = _known("huber", student, target)
    return F.huber_loss(ours, theirs, reduction="sum", delta=delta) / count


def _known(name: str, student: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Both as floats of one shape, equal where the target is not known, and the count of what is, at least 1."""
    if len(student) != len(target) or student.numel() != target.numel():
        raise UsageError(
            f"{name}: the student's output is {list(student.shape)} and the target {list(target.shape)}; both need as "
            "many values a row: set the student's number of outputs"
        )
    ours = wide(student)
    theirs = target.to(ours.dtype).reshape(ours.shape)
    unknown = theirs.isnan()
    return ours.masked_fill(unknown, 0.0), theirs.masked_fill(unknown, 0.0), (~unknown).sum().clamp(min=1)
