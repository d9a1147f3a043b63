"""What is done to each image of a view: drawn as a pure function of seed, view and sample id, kept as whole numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdcache.keyed import keyed_hash
from kdcache.views.spec import FACTOR, HUE_TURN, ViewsSpec

__all__ = ["draw"]

Int64s = NDArray[np.int64]
Float64s = NDArray[np.float64]
_ATTEMPTS = 1024  # at alpha = 4 one attempt in 70 succeeds


class _Draws:
    """Even numbers in [0, 1), float64 [n]: one for each sample and each name that is asked for."""

    def __init__(self, spec: ViewsSpec, view: int, ids: Int64s) -> None:
        self._text, self.ids = f"kdcache-view-1|{spec.config.seed}|{view}", ids

    def __call__(self, name: str, chosen: NDArray[np.bool_] | None = None) -> Float64s:
        ids = self.ids if chosen is None else self.ids[chosen]
        return (keyed_hash(f"{self._text}|{name}", ids) >> np.uint64(11)).astype(np.float64) * 2.0**-53

    def between(self, name: str, low: float, high: float) -> Float64s:
        return low + (high - low) * self(name)

    def below(self, name: str, count: Int64s | int) -> Int64s:
        """A whole number from 0 to count - 1."""
        found: Int64s = np.minimum((self(name) * count).astype(np.int64), np.asarray(count) - 1)
        return found


def draw(spec: ViewsSpec, view: int, ids: Int64s, within: Int64s, sizes: Int64s) -> dict[str, NDArray[Any]]:
    """The plain fields of a view but its `delta`: `params` int16 [n, K] and `partner` int32 [n].

    `within` is each row's place in its block and `sizes` that block's rows. The partner is given as its distance, so
    that 0 <= within + partner < sizes; it is never the row itself, but in a block of one row. A row that is not mixed
    has the distance 0.
    """
    draws, config = _Draws(spec, view, ids), spec.config
    height, width = spec.height, spec.width
    found: dict[str, Int64s] = {}
    if config.crop:
        sides = _sides(draws, "crop", config.crop.scale, config.crop.ratio, height, width)
        found |= _box(draws, "crop", *sides, height, width)
    if config.shift:
        for name in ("shift.down", "shift.right"):
            found[name] = draws.below(name, 2 * config.shift + 1) - config.shift
    if config.flip is not None:
        found["flip"] = (draws("flip") < config.flip).astype(np.int64)
    if config.jitter:
        applied = draws("jitter") < config.jitter.probability
        for name in ("brightness", "contrast", "saturation"):
            if strength := getattr(config.jitter, name):
                factor = draws.between(f"jitter.{name}", max(0.0, 1 - strength), 1 + strength)
                found[f"jitter.{name}"] = np.where(applied, _rounded(factor * FACTOR), FACTOR)
        if hue := config.jitter.hue:
            found["jitter.hue"] = np.where(applied, _rounded(draws.between("jitter.hue", -hue, hue) * HUE_TURN), 0)
    if config.erase:
        applied = draws("erase") < config.erase.probability
        sides = _sides(draws, "erase", config.erase.scale, config.erase.ratio, height, width)
        found |= {name: values * applied for name, values in _box(draws, "erase", *sides, height, width).items()}
    partner = None
    if config.mixes:
        mixed, cut, partner = _mixing(spec, draws, within, sizes)
        if config.mixup:
            share = _beta(draws, "mixup", config.mixup.alpha)
            found["mixup.share"] = np.where(mixed, _rounded(share * FACTOR), FACTOR)
        if config.cutmix:
            side = np.sqrt(1 - _beta(draws, "cutmix", config.cutmix.alpha))
            box = _box(draws, "cutmix", _rounded(height * side), _rounded(width * side), height, width)
            found |= {name: values * cut for name, values in box.items()}
    made: dict[str, NDArray[Any]] = {}
    if spec.layout:
        made["params"] = np.stack([found[name] for name in spec.layout], axis=1).astype(np.int16)
    if partner is not None:
        made["partner"] = partner.astype(np.int32)
    return made


def _rounded(values: Float64s) -> Int64s:
    return np.rint(values).astype(np.int64)


def _sides(
    draws: _Draws, name: str, scale: tuple[float, float], ratio: tuple[float, float], height: int, width: int
) -> tuple[Int64s, Int64s]:
    """Height and width of boxes with these shares of the area and ratios of the sides, cut to the image's own sides."""
    area = draws.between(f"{name}.area", *scale) * height * width
    shape = np.exp(draws.between(f"{name}.ratio", float(np.log(ratio[0])), float(np.log(ratio[1]))))
    tall, wide = _rounded(np.sqrt(area / shape)), _rounded(np.sqrt(area * shape))
    return np.clip(tall, 1, height), np.clip(wide, 1, width)


def _box(draws: _Draws, name: str, tall: Int64s, wide: Int64s, height: int, width: int) -> dict[str, Int64s]:
    """Boxes of these sides, each at a place inside the image."""
    top = draws.below(f"{name}.top", height - tall + 1)
    left = draws.below(f"{name}.left", width - wide + 1)
    return {f"{name}.top": top, f"{name}.left": left, f"{name}.height": tall, f"{name}.width": wide}


def _mixing(
    spec: ViewsSpec, draws: _Draws, within: Int64s, sizes: Int64s
) -> tuple[NDArray[np.bool_], NDArray[np.bool_], Int64s]:
    """Which rows are mixed as a whole, which by a box, and how far their partner is."""
    chance = draws("mix")
    mixup, cutmix = spec.config.mix_probabilities
    mixed = (chance < mixup) & (sizes > 1)
    cut = (chance >= mixup) & (chance < mixup + cutmix) & (sizes > 1)
    place = (within + 1 + draws.below("partner", np.maximum(sizes - 1, 1))) % sizes
    return mixed, cut, np.where(mixed | cut, place - within, 0)


def _beta(draws: _Draws, name: str, alpha: float) -> Float64s:
    """Beta(alpha, alpha), by Jöhnk's method (1964): it takes nothing but powers of even numbers.

    U^(1/alpha) and V^(1/alpha) are drawn until their sum is at most 1; the share of the first in the sum is the draw.
    They are compared by their logarithms, since for a small alpha both are often below the least float64.
    """
    found = np.full(len(draws.ids), 0.5)
    open_ = np.ones(len(draws.ids), np.bool_)
    for attempt in range(_ATTEMPTS):
        one = np.log(draws(f"{name}.share.{attempt}.1", open_) + 2.0**-54) / alpha
        two = np.log(draws(f"{name}.share.{attempt}.2", open_) + 2.0**-54) / alpha
        total = np.logaddexp(one, two)
        accepted = total <= 0
        places = np.flatnonzero(open_)[accepted]
        found[places] = np.exp(one - total)[accepted]
        open_[places] = False
        if not open_.any():
            break
    return found
