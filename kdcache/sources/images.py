"""Images of another source brought to one size, or to one or three channels."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdcache.arrays import Array
from kdcache.errors import UsageError
from kdcache.fingerprint import digest_of
from kdcache.sources.source import Ids, Rows
from kdcache.sources.subset import LabelledSource
from kdcache.sources.wrapped import Wrapped

__all__ = ["ImagesAs"]

# Luma of ITU-R BT.601 in 16-bit fixed point, as in Pillow.
_LUMA = np.array([19595, 38470, 7471], np.uint32)


class ImagesAs(Wrapped):
    """The images of a source as uint8 [channels, side, side]; what else it has stays.

    `side`: scaled bilinearly, antialiased (which for a smaller side is the mean over areas that overlap), whatever
    the proportions; Pillow works in integers, so the pixels are the same on every machine. `channels` 3: grey three
    times; 1: luma 0.299 R + 0.587 G + 0.114 B. Without `channels` images stay [H, W] or [C, H, W].
    """

    def __init__(self, source: LabelledSource, side: int | None, channels: int | None) -> None:
        super().__init__(source)
        given = source.arrays["input"]
        shape = (1, *given.shape) if len(given.shape) == 2 else given.shape
        if given.dtype != "uint8" or len(shape) != 3 or shape[0] not in (1, 3):
            raise UsageError(
                f"{source.name}: `side` and `channels` are for images uint8 [H, W], [1, H, W] or [3, H, W]; "
                f"this input is {given}"
            )
        self._side = side
        self._channels = channels
        flat = channels is None and len(given.shape) == 2
        sides = (side, side) if side else shape[1:]
        self._shape = sides if flat else (channels or shape[0], *sides)

    @property
    def arrays(self) -> dict[str, Array]:
        return {**self._source.arrays, "input": Array("uint8", self._shape)}

    def read(self, ids: Ids) -> Rows:
        rows = self._source.read(ids)
        images = rows["input"].reshape(len(ids), -1, *rows["input"].shape[-2:])
        if self._channels == 1 and images.shape[1] == 3:
            images = _luma(images)
        if self._side:
            images = _resized(images, self._side)
        if self._channels == 3 and images.shape[1] == 1:
            images = images.repeat(3, axis=1)
        return {**rows, "input": images.reshape(len(ids), *self._shape)}

    def fingerprint(self) -> str:
        return digest_of({"source": self._source.fingerprint(), "side": self._side, "channels": self._channels})


def _luma(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """[B, 3, H, W] to [B, 1, H, W]."""
    weighted = np.einsum("bchw,c->bhw", images, _LUMA, dtype=np.uint32)
    grey: NDArray[np.uint8] = ((weighted + np.uint32(1 << 15)) >> np.uint32(16)).astype(np.uint8)
    return grey[:, None]


def _resized(images: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    """[B, C, H, W] to [B, C, side, side]; a plane at a time, as one of Pillow's images."""
    from PIL import Image

    out = np.empty((*images.shape[:2], side, side), np.uint8)
    planes: Any = zip(out.reshape(-1, side, side), images.reshape(-1, *images.shape[2:]), strict=True)
    for after, before in planes:
        after[...] = Image.fromarray(before).resize((side, side), Image.Resampling.BILINEAR)
    return out
