"""What every network of the zoo checks before it builds: the input's shape and lists of widths."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from kdcache.errors import UsageError

__all__ = ["image_shape", "whole_numbers", "with_channels"]


def image_shape(network: str, input_shape: Sequence[int], smallest: int) -> tuple[int, int, int]:
    """(C, H, W) of inputs [C, H, W], or [H, W] taken as one channel, of at least `smallest` pixels a side."""
    shape = tuple(input_shape)
    if len(shape) == 2:
        shape = (1, *shape)
    if len(shape) != 3:
        raise UsageError(
            f"{network} takes images [C, H, W] or [H, W]; this input has shape {list(input_shape)}: "
            "zoo:mlp takes inputs of any shape"
        )
    channels, height, width = shape
    if min(height, width) < smallest:
        raise UsageError(
            f"{network}: the smallest input is {smallest}x{smallest} pixels, because every pooling halves it; "
            f"this one is {height}x{width}"
        )
    return channels, height, width


def with_channels(x: Tensor) -> Tensor:
    """[B, C, H, W] from [B, C, H, W] or [B, H, W]."""
    return x.unsqueeze(1) if x.dim() == 3 else x


def whole_numbers(network: str, name: str, values: object, least: int = 1) -> tuple[int, ...]:
    """At least `least` positive whole numbers, as `name = [...]` of a recipe gives them."""
    if (
        not isinstance(values, list | tuple)
        or len(values) < least
        or not all(isinstance(v, int) and not isinstance(v, bool) and v > 0 for v in values)
    ):
        count = "a list of" if least == 0 else f"a list of {least} or more"
        raise UsageError(f"{network}: {name} = {values!r} must be {count} positive whole numbers")
    return tuple(values)
