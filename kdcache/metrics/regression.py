"""How far predicted values are from the field `target`.

The network's output ("logits", or the one that `NAME.OUTPUT` names, against `target.OUTPUT`) has as many values a row
as the target; NaN in the target is not known and left out.
"""

from __future__ import annotations

from torch import Tensor

from kdcache.errors import UsageError
from kdcache.metrics.judged import Judged

__all__ = ["mae", "mse", "r2"]


def mse(judged: Judged) -> dict[str, float]:
    """{"mse"}: (output - target)^2, the mean over all known values, in the target's units squared."""
    found, target = _known(judged)
    return {"mse": float((found - target).square().nanmean())}


def mae(judged: Judged) -> dict[str, float]:
    """{"mae"}: |output - target|, the mean over all known values, in the target's units."""
    found, target = _known(judged)
    return {"mae": float((found - target).abs().nanmean())}


def r2(judged: Judged) -> dict[str, float]:
    """{"r2"}: 1 - sum (output - target)^2 / sum (target - mean)^2, at most 1, with the mean of each column of the
    target over the known rows; 0 is what that mean itself would get. A column of large variance weighs more.
    """
    found, target = _known(judged)
    spread = float((target - target.nanmean(dim=0)).square().nansum())
    if spread == 0:
        raise UsageError("r2: the targets of the evaluation rows do not vary, so there is no variance to explain")
    return {"r2": 1 - float((found - target).square().nansum()) / spread}


def _known(judged: Judged) -> tuple[Tensor, Tensor]:
    """Output and target, float64 [N, V], NaN where the target is."""
    found, target = judged.output().detach(), judged.row("target")
    if len(found) != len(target) or found.numel() != target.numel():
        raise UsageError(
            f"the output is {list(found.shape)} and the target {list(target.shape)}: set the network's number of "
            "outputs to the values of a target"
        )
    target = target.double().reshape(len(target), -1)
    if target.isnan().all():
        raise UsageError(f"none of the {len(target)} evaluation rows has a known target to judge by")
    return found.double().reshape(target.shape), target
