"""What a store says of its views: the operations, the images, and what each recorded number means."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from pydantic import ValidationError

from kdcache.arrays import Array
from kdcache.config.views import ViewsConfig
from kdcache.errors import StoreDamaged, UsageError
from kdcache.fingerprint import canonical

__all__ = ["FACTOR", "HUE_TURN", "LERP", "ViewsSpec", "view_name", "views_json"]

FACTOR = 256  # a factor or share of 1
HUE_TURN = 3072  # a whole turn of the hue: six sixths of 512
LERP = 2048  # the weight of a whole pixel where an image is resized
_MOST_SIDE = 32767
_BOX = ("top", "left", "height", "width")
_COLOURS = ("brightness", "contrast", "saturation", "hue")


def view_name(view: int, field: str) -> str:
    """The name on disk of a view's field: `view01.logits`. Views are counted from 1."""
    return f"view{view:02d}.{field}"


def views_json(config: ViewsConfig, teacher: str | None = None) -> dict[str, Any]:
    """What plan.json says of the views; `teacher` is the fingerprint of the one that an attack was made on."""
    found: dict[str, Any] = config.model_dump(mode="json", exclude_none=True)
    if config.attack:
        found["attack"]["teacher"] = teacher
    return found


@dataclass(frozen=True)
class ViewsSpec:
    """The views of images `image`, uint8 [C, H, W] or [H, W]. Raises UsageError for inputs that are no such images."""

    config: ViewsConfig
    image: Array

    def __post_init__(self) -> None:
        shape = self.image.shape
        if self.image.dtype != "uint8" or len(shape) not in (2, 3):
            raise UsageError(f"views are of images, uint8 [C, H, W] or [H, W], and the inputs here are {self.image}")
        if max(self.height, self.width) > _MOST_SIDE:
            raise UsageError(f"views are of images of at most {_MOST_SIDE} pixels a side, and these are {self.image}")
        jitter = self.config.jitter
        if jitter and (jitter.saturation or jitter.hue) and self.channels != 3:
            raise UsageError(f"views.jitter: saturation and hue are of images with 3 channels; these are {self.image}")

    @classmethod
    def from_json(cls, table: Mapping[str, Any], image: Array, place: str) -> ViewsSpec:
        """The specification in a plan; StoreDamaged unless it is one that kdcache writes."""
        given = {key: value for key, value in table.items() if key != "attack"}
        if isinstance(attack := table.get("attack"), dict):
            given["attack"] = {key: value for key, value in attack.items() if key != "teacher"}
        try:
            config = ViewsConfig.model_validate(given)
            same = canonical(config.model_dump(mode="json", exclude_none=True)) == canonical(given)
            if same and ("attack" in table) == ("attack" in given):
                return cls(config, image)
        except (ValidationError, UsageError, TypeError, ValueError) as error:
            said = str(error).splitlines()[0]
            raise StoreDamaged(f"{place}: its views are none that kdcache writes: {said[:200]}") from None
        raise StoreDamaged(f"{place}: its views are not as kdcache writes them; restore the store from a good copy")

    @property
    def count(self) -> int:
        return self.config.count

    @property
    def channels(self) -> int:
        return self.image.shape[0] if len(self.image.shape) == 3 else 1

    @property
    def height(self) -> int:
        return self.image.shape[-2]

    @property
    def width(self) -> int:
        return self.image.shape[-1]

    @property
    def mixes(self) -> bool:
        """Whether a row needs its partner: another row of the same block."""
        return self.config.mixes

    @property
    def attacks(self) -> bool:
        """Whether a row has a perturbation, int8 of the image's shape."""
        return self.config.attack is not None

    @property
    def augments(self) -> bool:
        """Whether anything is done to an image but mixing it and adding a perturbation to it."""
        return any(not name.startswith(("mixup", "cutmix")) for name in self.layout)

    @cached_property
    def bounds(self) -> dict[str, tuple[int, int]]:
        """The least and the largest value of every recorded number, in the order in which they are recorded."""
        config, height, width = self.config, self.height, self.width
        empty = {"top": (0, height), "left": (0, width), "height": (0, height), "width": (0, width)}
        found: dict[str, tuple[int, int]] = {}
        if config.crop:
            found |= {f"crop.{part}": empty[part] for part in _BOX}
            found |= {"crop.height": (1, height), "crop.width": (1, width)}
        if config.shift:
            found |= {"shift.down": (-config.shift, config.shift), "shift.right": (-config.shift, config.shift)}
        if config.flip is not None:
            found["flip"] = 0, 1
        for colour in _COLOURS:
            if config.jitter and getattr(config.jitter, colour):
                most = HUE_TURN // 2 if colour == "hue" else 5 * FACTOR
                found[f"jitter.{colour}"] = (-most if colour == "hue" else 0), most
        if config.erase:
            found |= {f"erase.{part}": empty[part] for part in _BOX}
        if config.mixup:
            found["mixup.share"] = 0, FACTOR
        if config.cutmix:
            found |= {f"cutmix.{part}": empty[part] for part in _BOX}
        return found

    @cached_property
    def layout(self) -> tuple[str, ...]:
        """The names of the recorded numbers, in their order."""
        return tuple(self.bounds)

    def place(self, name: str) -> int:
        """Where a number stands in a row's parameters."""
        return self.layout.index(name)

    @property
    def boxes(self) -> tuple[str, ...]:
        """The operations that record a box, which must lie inside the image."""
        return tuple(name.removesuffix(".top") for name in self.layout if name.endswith(".top"))

    def fields(self) -> dict[str, Array]:
        """The plain fields of one view, without its prefix: `params`, and `partner` and `delta` where there are any."""
        found = {"params": Array("int16", (len(self.layout),))} if self.layout else {}
        if self.mixes:
            found["partner"] = Array("int32")
        if self.attacks:
            found["delta"] = Array("int8", self.image.shape)
        return found
