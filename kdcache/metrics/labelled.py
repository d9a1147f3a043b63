"""The labelled places of logits: single samples, or the pixels or tokens of samples."""

from __future__ import annotations

from torch import Tensor

from kdcache.errors import UsageError
from kdcache.metrics.judged import Judged

__all__ = ["labelled", "places"]


def places(judged: Judged, field: str = "label") -> tuple[Tensor, Tensor]:
    """Logits float32 [R, C] and classes int64 [R] of all R = N or N * P places, of which -1 is none.

    UsageError unless logits are [N, C] and the field [N], or [N, P, C] and [N, P], with classes below C.
    """
    logits, label = judged.output().detach(), judged.row(field)
    if logits.shape[:-1] != label.shape or logits.ndim not in (2, 3) or label.is_floating_point():
        raise UsageError(
            f"logits are {list(logits.shape)} and {field} is {label.dtype} {list(label.shape)}: a metric on classes "
            "needs [N, C] and integers [N], or [N, P, C] and [N, P]"
        )
    if label.numel() and int(label.max()) >= logits.shape[-1]:
        raise UsageError(f"{field} goes up to {int(label.max())}, and the network has {logits.shape[-1]} outputs")
    return logits.float().flatten(0, -2), label.flatten().long()


def labelled(judged: Judged, field: str = "label") -> tuple[Tensor, Tensor]:
    """As `places`, of the labelled places only; UsageError if there is none."""
    logits, label = places(judged, field)
    known = label >= 0
    if not known.any():
        raise UsageError(f"none of the {len(judged.row(field))} evaluation rows has a {field} to judge by")
    return (logits, label) if known.all() else (logits[known], label[known])
