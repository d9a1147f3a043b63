"""Specifications and images that the tests of views share."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kdcache.arrays import Array
from kdcache.config.views import CropConfig, EraseConfig, JitterConfig, MixConfig, ViewsConfig
from kdcache.views import ViewsSpec, draw, replay

EVERYTHING = ViewsConfig(
    count=2,
    seed=3,
    crop=CropConfig(),
    shift=2,
    flip=0.5,
    jitter=JitterConfig(brightness=0.4, contrast=0.4, saturation=0.4, hue=0.2, probability=0.8),
    erase=EraseConfig(probability=0.5),
    mixup=MixConfig(alpha=0.4),
    cutmix=MixConfig(),
)
ALONE = {
    "crop": ViewsConfig(crop=CropConfig()),
    "shift": ViewsConfig(shift=4),
    "flip": ViewsConfig(flip=0.5),
    "jitter": ViewsConfig(jitter=EVERYTHING.jitter),
    "erase": ViewsConfig(erase=EraseConfig(probability=1.0)),
    "mixup": ViewsConfig(mixup=MixConfig()),
    "cutmix": ViewsConfig(cutmix=MixConfig()),
    "everything": EVERYTHING,
}
BLOCK = 16


def spec_of(config: ViewsConfig, shape: tuple[int, ...] = (3, 9, 7)) -> ViewsSpec:
    return ViewsSpec(config, Array("uint8", shape))


def drawn(spec: ViewsSpec, ids: NDArray[np.int64], view: int = 1) -> dict[str, Tensor]:
    """Parameters of rows that follow each other in blocks of 16."""
    within = np.arange(len(ids)) % BLOCK
    sizes = np.minimum(BLOCK, len(ids) - (np.arange(len(ids)) - within))
    return {name: torch.from_numpy(values) for name, values in draw(spec, view, ids, within, sizes).items()}


def images_of(spec: ViewsSpec, rows: int) -> Tensor:
    draw_ = torch.Generator().manual_seed(rows)
    return torch.randint(0, 256, (rows, *spec.image.shape), dtype=torch.uint8, generator=draw_)


def replayed(spec: ViewsSpec, x: Tensor, found: dict[str, Tensor], rows: Tensor) -> Tensor:
    """The views of some rows, in any order."""
    given = {}
    if spec.mixes:
        partners = rows + found["partner"][rows].long()
        given = {"partners": x[partners], "partner_parameters": found["params"][partners]}
    return replay(x[rows], found["params"][rows], spec, **given)
