"""Plain random augmentation of a batch of images, on its device and without a loop over samples."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad

from kdcache.errors import UsageError
from kdcache.fingerprint import digest_of

__all__ = ["AUGMENTATIONS", "augment", "augment_generator"]

AUGMENTATIONS = ("crop", "flip")


def augment_generator(seed: int, step: int, rank: int = 0) -> torch.Generator:
    """The random numbers of one step; on the CPU, so that every device gets the same ones."""
    key = digest_of(["augment", seed, step, rank])
    return torch.Generator().manual_seed(int(key[:16], 16) >> 1)


def augment(x: Tensor, names: Sequence[str], generator: torch.Generator) -> Tensor:
    """Images [B, C, H, W] or [B, H, W] of any dtype, changed by each of `names` in turn; the shape stays.

    flip: mirrored left to right with probability 1/2, per sample.
    crop: zeros are put around the image (4 pixels along sides of 28 or more, else an eighth of the side, at least 1)
    and a window of the image's size is taken from a random place, per sample.
    """
    for name in names:
        if name not in AUGMENTATIONS:
            raise UsageError(f"augment: {name!r} is unknown; known: {', '.join(AUGMENTATIONS)}")
    if not names:
        return x
    if x.dim() not in (3, 4):
        raise UsageError(
            f"augment = {list(names)} needs images [C, H, W] or [H, W]; these inputs have shape {list(x.shape[1:])}"
        )
    images = x if x.dim() == 4 else x.unsqueeze(1)
    for name in names:
        images = _flip(images, generator) if name == "flip" else _crop(images, generator)
    return images if x.dim() == 4 else images.squeeze(1)


def _flip(x: Tensor, generator: torch.Generator) -> Tensor:
    flipped = torch.randint(0, 2, (x.shape[0], 1, 1, 1), generator=generator, device=generator.device) == 1
    return torch.where(flipped.to(x.device, non_blocking=True), x.flip(-1), x)


def _crop(x: Tensor, generator: torch.Generator) -> Tensor:
    height, width = x.shape[2:]
    down, right = _margin(height), _margin(width)
    rows = torch.randint(0, 2 * down + 1, (x.shape[0],), generator=generator, device=generator.device)
    columns = torch.randint(0, 2 * right + 1, (x.shape[0],), generator=generator, device=generator.device)
    # A view of every window at once, [B, C, row, column, H, W]; indexing copies just the ones that were drawn.
    windows = pad(x, (right, right, down, down)).unfold(2, height, 1).unfold(3, width, 1)
    samples = torch.arange(x.shape[0], device=x.device)
    return windows[samples, :, rows.to(x.device, non_blocking=True), columns.to(x.device, non_blocking=True)]


def _margin(side: int) -> int:
    return 4 if side >= 28 else max(1, side // 8)
