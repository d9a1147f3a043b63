"""Picture files as arrays, decoded by Pillow within bounds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from kdcache.errors import SourceError, TrustError

__all__ = ["SUFFIXES", "check_inside", "picture_size", "read_picture"]

SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"})
# A picture that unpacks to more than this is a bomb or a map, not a sample.
_MOST_PIXELS = 1 << 26


def read_picture(path: Path, size: int | tuple[int, int] | None) -> npt.NDArray[np.uint8]:
    """One picture as uint8 RGB [3, H, W]; SourceError where it cannot be decoded.

    With a whole number the largest centred square is scaled to that side, with (height, width) all of the picture is
    scaled to that, whatever its proportions; both bilinear, antialiased.
    """
    from PIL import Image

    try:
        with Image.open(path) as image:
            width, height = _bounded(path, image.size)
            transparent = image.mode == "P" and "transparency" in image.info
            picture = (image.convert("RGBA") if transparent else image).convert("RGB")
            if isinstance(size, int):
                side = min(width, height)
                left, top = (width - side) / 2, (height - side) / 2
                box = (left, top, left + side, top + side)
                picture = picture.resize((size, size), Image.Resampling.BILINEAR, box=box)
            elif size:
                picture = picture.resize(size[::-1], Image.Resampling.BILINEAR)
            return np.ascontiguousarray(np.asarray(picture, np.uint8).transpose(2, 0, 1))
    except SourceError:
        raise
    except Exception as error:  # every decoder of Pillow has its own way to fail on a damaged file
        raise SourceError(f"{path}: cannot be read as an image ({error}); repair or remove it") from error


def picture_size(path: Path) -> tuple[int, int]:
    """(height, width) in pixels from a picture's header. SourceError."""
    from PIL import Image

    try:
        with Image.open(path) as image:
            width, height = _bounded(path, image.size)
            return height, width
    except SourceError:
        raise
    except Exception as error:  # as above
        raise SourceError(f"{path}: cannot be read as an image ({error}); repair or remove it") from error


def _bounded(path: Path, size: tuple[int, int]) -> tuple[int, int]:
    if size[0] * size[1] > _MOST_PIXELS:
        raise SourceError(f"{path}: {size[0]}×{size[1]} pixels are more than the {_MOST_PIXELS} allowed")
    return size


def check_inside(root: Path, path: Path) -> None:
    """TrustError for a link that leads out of `root`, which is absolute: a stranger's folder would copy other files."""
    if not path.is_symlink():
        return
    try:
        target = path.resolve()
    except (OSError, RuntimeError) as error:  # a link that leads back to itself
        raise SourceError(f"{path}: a link that leads nowhere ({error}); copy the file instead") from error
    if not target.is_relative_to(root):
        raise TrustError(f"{path}: a link to {target}, outside of the folder {root}; copy the files instead")
