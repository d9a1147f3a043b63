"""[views]: augmentations that are drawn once, recorded as numbers, and shown to teacher and student alike."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from kdcache.config.table import Positive, Seed, Table

__all__ = [
    "AttackConfig",
    "CropConfig",
    "EraseConfig",
    "JitterConfig",
    "MixConfig",
    "ViewsConfig",
]

Probability = Annotated[float, Field(ge=0, le=1)]
Share = Annotated[float, Field(gt=0, le=1)]
Ratio = Annotated[float, Field(ge=0.01, le=100)]
Strength = Annotated[float, Field(ge=0, le=4)]
MOST_VIEWS = 99


def _ascending(pair: tuple[float, float], name: str) -> None:
    if pair[0] > pair[1]:
        raise ValueError(f"{name} = {list(pair)}: the first must not be above the second")


class CropConfig(Table):
    """A random part of the image, resized to the image's own size (Szegedy et al. 2015)."""

    scale: tuple[Share, Share] = Field((0.25, 1.0), description="share of the image's area, drawn evenly")
    ratio: tuple[Ratio, Ratio] = Field((0.75, 4 / 3), description="width to height, its logarithm drawn evenly")

    @model_validator(mode="after")
    def _in_order(self) -> CropConfig:
        _ascending(self.scale, "scale")
        _ascending(self.ratio, "ratio")
        return self


class JitterConfig(Table):
    """Colours: factors drawn evenly from 1 - s to 1 + s (not below 0), the hue from -s to s turns."""

    brightness: Strength = 0.0
    contrast: Strength = 0.0
    saturation: Strength = 0.0
    hue: Annotated[float, Field(ge=0, le=0.5)] = 0.0
    probability: Probability = 1.0

    @model_validator(mode="after")
    def _something(self) -> JitterConfig:
        if not (self.brightness or self.contrast or self.saturation or self.hue):
            raise ValueError("jitter: give at least one of brightness, contrast, saturation and hue above 0")
        return self


class EraseConfig(Table):
    """A random box filled with one value (Zhong et al. 2017)."""

    probability: Probability = 0.25
    scale: tuple[Share, Share] = Field((0.02, 0.33), description="share of the image's area, drawn evenly")
    ratio: tuple[Ratio, Ratio] = Field((0.3, 3.3), description="width to height, its logarithm drawn evenly")
    value: Annotated[int, Field(ge=0, le=255)] = Field(128, description="what the box is filled with")

    @model_validator(mode="after")
    def _in_order(self) -> EraseConfig:
        _ascending(self.scale, "scale")
        _ascending(self.ratio, "ratio")
        return self


class MixConfig(Table):
    """How two images are mixed; their shares are drawn from Beta(alpha, alpha)."""

    alpha: Annotated[float, Field(ge=0.01, le=4)] = 1.0
    probability: Probability | None = Field(None, description="default 1; where mixup and cutmix are both given 0.5")


class AttackConfig(Table):
    """A perturbation of every pixel that turns the teacher from its own answer, by projected gradient ascent."""

    epsilon: Annotated[int, Field(ge=1, le=127)] = Field(8, description="the most that a value may change, of 255")
    steps: Annotated[int, Field(ge=1, le=1000)] = 10
    step: Annotated[float, Field(gt=0, le=127)] | None = Field(
        None, description="how far a value moves in one step (default 2.5 epsilon / steps)"
    )


class ViewsConfig(Table):
    """Augmented images whose soft labels the store keeps. The operations are done in the order of these keys."""

    count: Annotated[int, Field(ge=1, le=MOST_VIEWS)] = Field(1, description="views of every sample")
    seed: Seed = 0
    plain: bool = Field(False, description="keep what the teacher says of the unchanged image too")
    crop: CropConfig | None = None
    shift: Positive | None = Field(None, description="pixels that the image moves at most, each way; black comes in")
    flip: Probability | None = Field(None, description="probability that left and right are exchanged")
    jitter: JitterConfig | None = None
    erase: EraseConfig | None = None
    mixup: MixConfig | None = Field(None, description="a weighted mean with another image (Zhang et al. 2018)")
    cutmix: MixConfig | None = Field(None, description="a box of another image (Yun et al. 2019)")
    attack: AttackConfig | None = None

    @model_validator(mode="after")
    def _fits_together(self) -> ViewsConfig:
        if not any((self.crop, self.shift, self.flip, self.jitter, self.erase, self.mixup, self.cutmix, self.attack)):
            raise ValueError("no operation is given; name at least one of crop, shift, flip, jitter, erase, mixup, "
                             "cutmix, attack")  # fmt: skip
        if sum(self.mix_probabilities) > 1:
            raise ValueError("mixup and cutmix: an image is mixed in one way, so their probabilities sum to 1 at most")
        return self

    @property
    def mix_probabilities(self) -> tuple[float, float]:
        """Of mixup and of cutmix."""
        default = 0.5 if self.mixup and self.cutmix else 1.0
        found = [
            0.0 if one is None else default if one.probability is None else one.probability
            for one in (self.mixup, self.cutmix)
        ]
        return found[0], found[1]

    @property
    def mixes(self) -> bool:
        """Whether a view may hold a part of another image."""
        return self.mixup is not None or self.cutmix is not None
