"""Taps: the outputs of named modules inside a network, read while it runs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn

from kdcache.errors import UsageError
from kdcache.near_misses import near_misses

__all__ = ["pool_spatial", "tap_outputs"]


@contextmanager
def tap_outputs(model: nn.Module, taps: Mapping[str, str]) -> Iterator[dict[str, Tensor]]:
    """A dict that every forward pass of `model` fills anew: {field: output of the module at `taps[field]`}.

    An output that is a tuple, list or dict counts as its first tensor. Gradients flow through. The tensors are copies,
    since many networks go on to change a module's output in place. A module that runs several times leaves its last
    output; one that does not run in a pass raises UsageError at the end of the pass, so nothing stale is ever read.
    `model` is the network itself, not a distributed or compiled wrapper around it.
    """
    modules = dict(model.named_modules())
    for field, path in taps.items():
        if not path or path not in modules:
            raise UsageError(
                f"tap {field} = {path!r}: {type(model).__name__} has no such module; "
                f"{near_misses(path, (name for name in modules if name))}"
            )
    outputs: dict[str, Tensor] = {}

    def begin(module: nn.Module, inputs: Any) -> None:
        outputs.clear()

    def finish(module: nn.Module, inputs: Any, output: Any) -> None:
        for field, path in taps.items():
            if field not in outputs:
                raise UsageError(f"tap {field} = {path!r}: this module did not run in the forward pass; tap another")

    with ExitStack() as hooks:
        if taps:
            hooks.callback(model.register_forward_pre_hook(begin).remove)
            hooks.callback(model.register_forward_hook(finish).remove)
        for field, path in taps.items():
            hooks.callback(modules[path].register_forward_hook(_keep(outputs, field, path)).remove)
        yield outputs


def pool_spatial(x: Tensor) -> Tensor:
    """[B, D, ...] → [B, D]: the mean over every axis after the channels'; [B, D] and [B] come back unchanged."""
    return x.mean(dim=tuple(range(2, x.dim()))) if x.dim() > 2 else x


def _keep(outputs: dict[str, Tensor], field: str, path: str) -> Any:
    def keep(module: nn.Module, inputs: Any, output: Any) -> None:
        tensor = _first_tensor(output)
        if tensor is None:
            raise UsageError(f"tap {field} = {path!r}: its output is a {type(output).__name__} that holds no tensor")
        outputs[field] = tensor.clone()

    return keep


def _first_tensor(output: Any) -> Tensor | None:
    if isinstance(output, Tensor):
        return output
    parts = output.values() if isinstance(output, Mapping) else output if isinstance(output, list | tuple) else ()
    return next((part for part in parts if isinstance(part, Tensor)), None)
