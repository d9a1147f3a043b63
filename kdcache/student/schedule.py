"""Learning-rate schedules as pure functions of the step, so that a resumed run needs no schedule state."""

from __future__ import annotations

import math

from kdcache.config import TrainConfig

__all__ = ["rate_factor"]

# one_cycle: the rate starts at 1/25 of its peak and ends at 1/10000 of where it started (torch's OneCycleLR defaults).
_START = 1 / 25
_END = _START / 1e4


def rate_factor(train: TrainConfig, step: int, steps: int) -> float:
    """The factor on `train.lr` for the 0-based `step` of `steps`, in (0, 1].

    constant   1
    cosine     (1 + cos(pi step / steps)) / 2: 1 at the first step, 0 where the fit ends
    step       gamma ** (number of milestones m with step >= m steps)
    warmup     linear up to 1 over the first `warmup` share of the steps, then 1
    one_cycle  cosine from 1/25 up to 1 over the first `warmup` share, then cosine down to 1/250000: the two-phase
               schedule of torch's OneCycleLR (Smith and Topin 2018) without its momentum cycle
    """
    if train.schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * step / steps))
    if train.schedule == "step":
        return float(train.gamma ** sum(step >= share * steps for share in train.milestones))
    if train.schedule == "warmup":
        return min(1.0, (step + 1) / max(1.0, train.warmup * steps))
    if train.schedule == "one_cycle":
        top, last = train.warmup * steps - 1, steps - 1
        if step <= top:
            return _between(_START, 1.0, step / top if top > 0 else 1.0)
        top = max(top, 0.0)
        return _between(1.0, _END, (step - top) / (last - top) if last > top else 0.0)
    return 1.0


def _between(start: float, end: float, share: float) -> float:
    """Cosine from `start` at share 0 to `end` at share 1."""
    return end + (start - end) / 2 * (1 + math.cos(math.pi * share))
