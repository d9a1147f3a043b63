"""From a stored image and its recorded numbers to the image that the teacher saw, on any device, to the last bit.

Everything is done in whole numbers and each image by itself, so batch size, order, threads and device change nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from kdcache.errors import StoreDamaged, UsageError
from kdcache.views import colour
from kdcache.views.resample import resample
from kdcache.views.spec import FACTOR, ViewsSpec

__all__ = ["check_parameters", "own_share", "replay", "replay_batch"]

_MOST_VALUES = {"cpu": 1 << 20, "cuda": 1 << 26}  # worked on at once: few enough for a processor's cache


def replay(
    images: Tensor,
    parameters: Tensor | None,
    spec: ViewsSpec,
    *,
    partners: Tensor | None = None,
    partner_parameters: Tensor | None = None,
    delta: Tensor | None = None,
) -> Tensor:
    """The augmented images, uint8 of the shape of `images` (uint8 [B, C, H, W] or [B, H, W]).

    parameters: int16 [B, K] as `spec.layout` names them, None where that is empty. The image is cropped, shifted,
    flipped, jittered and erased; then it is mixed with its partner, which has been through the same with parameters of
    its own (`partners`, `partner_parameters`, needed where `spec.mixes`); then `delta` int8 is added (needed where
    `spec.attacks`), held within a byte. Values that `check_parameters` refuses give wrong images or an IndexError.
    """
    if images.dtype != torch.uint8 or tuple(images.shape[1:]) != spec.image.shape:
        raise UsageError(f"views of {spec.image}: given {images.dtype} of shape {list(images.shape[1:])}")
    if spec.mixes and partners is None:
        raise UsageError("these views are mixed: give the partners' images and parameters too")
    if spec.attacks and delta is None:
        raise UsageError("these views are perturbed: give delta too")
    most = max(1, _MOST_VALUES.get(images.device.type, 1 << 20) // max(spec.image.size, 1))
    given = images, parameters, partners, partner_parameters, delta
    if len(images) <= most:
        return _replay(spec, *given)
    runs = range(0, len(images), most)
    parts = [[None if tensor is None else tensor[first : first + most] for tensor in given] for first in runs]
    return torch.cat([_replay(spec, *part) for part in parts])


def replay_batch(batch: Mapping[str, Any], spec: ViewsSpec) -> Tensor:
    """The augmented images of a batch of the loader: `input` with the batch's own `view.*` fields."""
    return replay(
        batch["input"],
        batch.get("view.params"),
        spec,
        partners=batch.get("view.partner.input"),
        partner_parameters=batch.get("view.partner.params"),
        delta=batch.get("view.delta"),
    )


def own_share(parameters: Tensor, spec: ViewsSpec) -> Tensor:
    """How much of each mixed image is its own, float32 [B] from 0 to 1; the rest is its partner's.

    What a hard label is worth under MixUp and CutMix: `share * ce(x, label) + (1 - share) * ce(x, partner's label)`.
    """
    share = torch.ones(len(parameters), dtype=torch.float32, device=parameters.device)
    if spec.config.mixup:
        share = share * (parameters[:, spec.place("mixup.share")].float() / FACTOR)
    if spec.config.cutmix:
        box = parameters[:, spec.place("cutmix.height")].float() * parameters[:, spec.place("cutmix.width")].float()
        share = share * (1 - box / (spec.height * spec.width))
    return share


def check_parameters(parameters: Tensor, spec: ViewsSpec) -> None:
    """StoreDamaged unless every number of int16 [B, K] is one that the operation can have, and every box lies inside
    the image."""
    low, high = torch.tensor(list(spec.bounds.values()), dtype=torch.int16).unbind(1)
    outside = (parameters < low) | (parameters > high)
    if outside.any():
        row, place = outside.nonzero()[0].tolist()
        name = spec.layout[place]
        raise StoreDamaged(
            f"row {row} of the batch has {name} = {int(parameters[row, place])}, which is from "
            f"{spec.bounds[name][0]} to {spec.bounds[name][1]}"
        )
    for name in spec.boxes:
        top, left, height, width = parameters[:, _box(spec, name)].int().unbind(1)
        beyond = (top + height > spec.height) | (left + width > spec.width)
        if beyond.any():
            row = int(beyond.nonzero()[0])
            raise StoreDamaged(
                f"row {row} of the batch has a {name} box of {int(height[row])} x {int(width[row])} at "
                f"{int(top[row])}, {int(left[row])}, which is not inside {spec.height} x {spec.width}"
            )


def _replay(
    spec: ViewsSpec,
    images: Tensor | None,
    parameters: Tensor | None,
    partners: Tensor | None,
    partner_parameters: Tensor | None,
    delta: Tensor | None,
) -> Tensor:
    assert images is not None
    x = _augmented(spec, images, parameters)
    if spec.mixes:
        assert partners is not None
        assert parameters is not None
        x = _mixed(spec, x, _augmented(spec, partners, partner_parameters), parameters)
    if delta is not None:
        x = x.to(torch.int16).add_(delta.view_as(x)).clamp_(0, 255).byte()
    return x.view(images.shape)


def _augmented(spec: ViewsSpec, images: Tensor, parameters: Tensor | None) -> Tensor:
    """Everything that is done to one image by itself; [B, C, H, W]."""
    x = images.reshape(len(images), spec.channels, spec.height, spec.width)
    config = spec.config
    if parameters is None or not spec.augments:
        return x
    numbers = parameters.int()
    crop = numbers[:, _box(spec, "crop")] if config.crop else None
    shift = numbers[:, spec.place("shift.down") :][:, :2] if config.shift else None
    flip = numbers[:, spec.place("flip")] if config.flip is not None else None
    if crop is not None or shift is not None or flip is not None:
        x = resample(x, crop, shift, flip)
    for name, apply in _COLOURS.items():
        if name in spec.layout:
            x = apply(x, numbers[:, spec.place(name)])
    if config.erase:
        x = torch.where(_inside(numbers[:, _box(spec, "erase")], spec), config.erase.value, x)
    return x


_COLOURS = {
    "jitter.brightness": colour.brightness,
    "jitter.contrast": colour.contrast,
    "jitter.saturation": colour.saturation,
    "jitter.hue": colour.hue,
}


def _mixed(spec: ViewsSpec, x: Tensor, other: Tensor, parameters: Tensor) -> Tensor:
    """MixUp, rounded to bytes, then the box of CutMix; a row has at most one of both."""
    numbers = parameters.int()
    if spec.config.mixup:
        share = numbers[:, spec.place("mixup.share")].view(-1, 1, 1, 1)
        both = x.int().mul_(share).add_(other.int().mul_(FACTOR - share)).add_(FACTOR // 2)
        x = both.bitwise_right_shift_(8).byte()
    if spec.config.cutmix:
        x = torch.where(_inside(numbers[:, _box(spec, "cutmix")], spec), other, x)
    return x


def _box(spec: ViewsSpec, name: str) -> slice:
    first = spec.place(f"{name}.top")
    return slice(first, first + 4)


def _inside(boxes: Tensor, spec: ViewsSpec) -> Tensor:
    """Which pixels lie in each box, bool [B, 1, H, W]; `boxes` int32 [B, 4] of top, left, height, width."""
    top, left, height, width = boxes[:, :, None].unbind(1)
    rows = torch.arange(spec.height, dtype=torch.int32, device=boxes.device)
    columns = torch.arange(spec.width, dtype=torch.int32, device=boxes.device)
    tall = (rows >= top) & (rows < top + height)
    wide = (columns >= left) & (columns < left + width)
    return tall[:, None, :, None] & wide[:, None, None, :]
