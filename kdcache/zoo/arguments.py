"""What every network of the zoo checks before it builds: the input's shape and the arguments of a recipe."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from kdcache.errors import UsageError

__all__ = ["choice", "flag", "image_shape", "share", "whole_number", "whole_numbers", "with_channels"]


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


def whole_number(network: str, name: str, value: object) -> int:
    """One positive whole number."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise UsageError(f"{network}: {name} = {value!r} must be one positive whole number")
    return value


def share(network: str, name: str, value: object) -> float:
    """A number from 0 to below 1, such as a dropout's."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1:
        raise UsageError(f"{network}: {name} = {value!r} must be a number from 0 to below 1")
    return float(value)


def flag(network: str, name: str, value: object) -> bool:
    """True or false, and no number that stands for it."""
    if not isinstance(value, bool):
        raise UsageError(f"{network}: {name} = {value!r} must be true or false")
    return value


def choice(network: str, name: str, value: object, known: Sequence[str]) -> str:
    """One of the known words."""
    if value not in known:
        words = [f'"{word}"' for word in known]
        raise UsageError(f"{network}: {name} = {value!r} must be {', '.join(words[:-1])} or {words[-1]}")
    return str(value)
