"""Optimisers from a recipe, and their state as tensors and numbers (no pickle)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from kdcache.config import TrainConfig
from kdcache.errors import CheckpointError, UsageError

__all__ = ["build_optimizer", "build_optimizers", "load_optimizer_state", "optimizer_state"]


def build_optimizers(train: TrainConfig, fitted: nn.Module, modules: nn.ModuleDict) -> dict[str, torch.optim.Optimizer]:
    """{"optimizer": the student's, with its adapters, and for each term with an opponent its own by the term's name}.

    An opponent is a module with `opponent_parameters()`; it is trained by Adam with beta1 = 0.5 (Radford et al. 2016),
    at its own `lr` or else the student's.
    """
    opponents = {
        name: list(module.opponent_parameters())  # type: ignore[operator]
        for name, module in modules.items()
        if hasattr(module, "opponent_parameters")
    }
    theirs = {id(parameter) for parameters in opponents.values() for parameter in parameters}
    found = {"optimizer": build_optimizer(train, (p for p in fitted.parameters() if id(p) not in theirs))}
    for name, parameters in opponents.items():
        rate = getattr(modules[name], "lr", None) or train.lr
        found[f"opponent-{name}"] = torch.optim.Adam(parameters, lr=rate, betas=(0.5, 0.999))
    for group in (group for optimizer in found.values() for group in optimizer.param_groups):
        group["initial_lr"] = group["lr"]  # what the schedule multiplies
    return found


def build_optimizer(train: TrainConfig, parameters: Iterable[torch.nn.Parameter]) -> torch.optim.Optimizer:
    """The recipe's optimiser over all parameters that can be trained; decay applies to every one of them."""
    trained = [p for p in parameters if p.requires_grad]
    if not trained:
        raise UsageError("the network has no parameter that can be trained; choose another model or args")
    # One fused kernel for a whole parameter, on CPU too: for small students half of a step's time goes here otherwise.
    fused = all(p.device.type in ("cpu", "cuda") and p.is_floating_point() for p in trained)
    if train.optimizer == "sgd":
        return torch.optim.SGD(
            trained, lr=train.lr, momentum=train.momentum, weight_decay=train.weight_decay, fused=fused
        )
    kind = torch.optim.Adam if train.optimizer == "adam" else torch.optim.AdamW
    return kind(trained, lr=train.lr, weight_decay=train.weight_decay, fused=fused)


def optimizer_state(optimizer: torch.optim.Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The state as tensors named `<parameter number>.<name>`, and what is no tensor by the same names."""
    tensors: dict[str, Tensor] = {}
    scalars: dict[str, Any] = {}
    for number, entries in optimizer.state_dict()["state"].items():
        for name, value in entries.items():
            place = tensors if isinstance(value, Tensor) else scalars
            place[f"{number}.{name}"] = value
    return tensors, scalars


def load_optimizer_state(
    optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor], scalars: Mapping[str, Any]
) -> None:
    """Undo `optimizer_state`; the rates and decays stay the recipe's."""
    state: dict[int, dict[str, Any]] = {}
    for key, value in {**tensors, **scalars}.items():
        number, _, name = key.partition(".")
        state.setdefault(int(number), {})[name] = value
    try:
        optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    except (ValueError, KeyError) as error:
        raise CheckpointError(f"the checkpoint's optimiser state does not fit this optimiser: {error}") from error
