"""Feature maps made smaller on the teacher's device, before their codec: pooled, projected, or collapsed to attention.

pool        adaptive average pooling of [D, H, W] to [D, side, side]
project     y = A (x - m) for the D channels x of each place, to r of them. `random`: A has entries ±1/√r, drawn once
            by key (Achlioptas 2003, theorem 1.1), m = 0; E[yᵀy'] = xᵀx', so a Gram matrix keeps its expectation, with
            a variance of at most 2 |x|²|x'|²/r. `pca`: A has the r largest principal axes of a pilot's places as rows,
            m is their mean; Aᵀ y + m is the closest to x that r numbers allow, on the pilot.
attention   the mean over channels of squared activations, [H, W] (Zagoruyko and Komodakis 2017, section 3.1); with
            `pool` the mean of the squares over each region

A plan's field says which (`StoredField.reduction`, see FORMAT.md), and its `array` is the reduced shape. A and m lie in
the store's tables, as `projection` and `projection_mean`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from kdcache.config import FieldConfig
from kdcache.errors import UsageError
from kdcache.keyed import keyed_hash

__all__ = ["fitted_projection", "needs_pilot", "reduced", "reduced_shape", "reduction_of"]

Reduction = dict[str, Any]
_CODECS = ("dense", "quant")
_MOST_PLACES = 1 << 16  # of a pilot, for the principal axes


def reduction_of(config: FieldConfig, shape: tuple[int, ...], *, logits: bool = False) -> Reduction | None:
    """What a recipe's field asks to be done with maps of `shape` per sample, as plain JSON; None for nothing.

    Raises UsageError where it cannot be done.
    """
    asked = config.pool is not None or config.project is not None or config.attention
    if config.projection is not None and config.project is None:
        raise UsageError(f'projection = "{config.projection}" needs project, the number of channels to keep')
    if not asked:
        return None
    if logits:
        raise UsageError("pool, project and attention are for feature maps, and this field is the logits")
    if config.budget is not None or (config.codec or "dense") not in _CODECS:
        codec = "a budget" if config.budget is not None else f"codec {config.codec!r}"
        raise UsageError(f"{codec} cannot go with pool, project or attention; take one of the codecs {_CODECS}")
    found: Reduction = {"of": list(shape)}
    if config.pool is not None:
        if len(shape) != 3:
            raise UsageError(f"pool = {config.pool}: is for maps [D, H, W], and this field is {list(shape)}")
        if config.pool > min(shape[1:]):
            raise UsageError(f"pool = {config.pool}: the map is {shape[1]} x {shape[2]}; give at most its shorter side")
        found["pool"] = config.pool
    if config.attention:
        if config.project is not None:
            raise UsageError("attention = true keeps no channels, so that project has nothing to do; leave one out")
        if len(shape) != 3:
            raise UsageError(f"attention = true is for maps [D, H, W], and this field is {list(shape)}")
        if (config.codec or "dense") != "dense":
            raise UsageError("attention = true: a map [H, W] is so small that only the dense codec stores it")
        found["attention"] = True
    if config.project is not None:
        channels = shape[_axis(shape)]
        if config.project >= channels:
            raise UsageError(
                f"project = {config.project}: the map has {channels} channels; give fewer, or leave it out"
            )
        found |= {"project": config.project, "projection": config.projection or "random"}
    return found


def reduced_shape(shape: tuple[int, ...], reduction: Mapping[str, Any] | None) -> tuple[int, ...]:
    """The shape per sample of what is left of a map of `shape`."""
    if reduction is None:
        return shape
    found = list(shape)
    if "pool" in reduction:
        found[1:] = [reduction["pool"]] * 2
    if "project" in reduction:
        found[_axis(shape)] = reduction["project"]
    return tuple(found[1:] if "attention" in reduction else found)


def needs_pilot(reduction: Mapping[str, Any] | None) -> bool:
    """Whether `fitted_projection` must be given a pilot's maps."""
    return reduction is not None and reduction.get("projection") == "pca"


def fitted_projection(reduction: Mapping[str, Any] | None, pilot: Tensor | None) -> dict[str, NDArray[Any]]:
    """The tables `projection` float32 [r, D] and, of "pca", `projection_mean` float32 [D]; {} without a projection.

    `pilot` is float32 [P, *shape] of maps as the teacher gives them. In float64; each axis has its entry of largest
    magnitude positive. Raises UsageError where the pilot has fewer than r + 1 places.
    """
    if reduction is None or "project" not in reduction:
        return {}
    shape, kept = tuple(reduction["of"]), reduction["project"]
    channels = shape[_axis(shape)]
    if not needs_pilot(reduction):
        signs = keyed_hash("kdcache-project-1", np.arange(kept * channels).reshape(kept, channels)) >> np.uint64(63)
        return {"projection": ((2.0 * signs - 1) / np.sqrt(kept)).astype(np.float32)}
    assert pilot is not None, "principal axes are those of a pilot"
    places = _pooled(pilot, reduction).movedim(1 + _axis(shape), -1).reshape(-1, channels)
    places = places[:: -(-len(places) // _MOST_PLACES)].cpu().double()
    if len(places) <= kept:
        raise UsageError(f"project = {kept}: the pilot has {len(places)} places of maps; dump more rows, or keep fewer")
    mean = places.mean(0)
    _, vectors = torch.linalg.eigh((places - mean).T @ (places - mean))
    axes = vectors.flip(1).T[:kept]
    axes = axes * axes.gather(1, axes.abs().argmax(1, keepdim=True)).sign()
    return {"projection": axes.float().numpy(), "projection_mean": mean.float().numpy()}


def reduced(values: Tensor, reduction: Mapping[str, Any] | None, tables: Mapping[str, Tensor]) -> Tensor:
    """float32 [B, *shape] maps → float32 [B, *reduced]. Projected in float64, so that batches do not show."""
    if reduction is None:
        return values
    if "attention" in reduction:
        return _pooled(values.square().mean(1, keepdim=True), reduction).squeeze(1)
    values = _pooled(values, reduction)
    if "project" not in reduction:
        return values
    axis = 1 + _axis(tuple(reduction["of"]))
    places = values.movedim(axis, -1).double()
    if (mean := tables.get("projection_mean")) is not None:
        places = places - mean
    return (places @ tables["projection"].double().T).movedim(-1, axis).float()


def _pooled(values: Tensor, reduction: Mapping[str, Any]) -> Tensor:
    return F.adaptive_avg_pool2d(values, reduction["pool"]) if "pool" in reduction else values


def _axis(shape: tuple[int, ...]) -> int:
    """Where the channels are: last in a sequence's stream [L, D], else first."""
    return 1 if len(shape) == 2 else 0
