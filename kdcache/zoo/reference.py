"""From a reference such as `zoo:resnet20` to a network that is known to fit its input and its classes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from kdcache.arrays import Array
from kdcache.errors import UsageError
from kdcache.near_misses import near_misses
from kdcache.zoo import ZOO
from kdcache.zoo.foreign import call, from_factory, from_hf, from_timm
from kdcache.zoo.language import from_hf_language
from kdcache.zoo.sequence import is_language_model, is_tokens

__all__ = ["build_model"]


def build_model(reference: str, args: Mapping[str, Any], *, input: Array, outputs: int) -> nn.Module:
    """A network that takes float inputs [B, *input.shape] and gives logits [B, outputs], in training mode.

    A language model (`kdcache.zoo.sequence`) takes tokens int64 [B, L] and gives [B, L, outputs].

    `reference` is zoo:NAME, timm:NAME, hf:NAME (a model type or a local folder) or package.module:factory; `args` are
    its factory's keyword arguments. Two blank samples are passed through to see that the shapes are as stated; no
    random number is drawn for that. Raises UsageError.
    """
    family, colon, name = reference.partition(":")
    if not (colon and family and name):
        raise UsageError(
            f"model {reference!r} must be written zoo:NAME, timm:NAME, hf:NAME or package.module:factory; "
            f"zoo: {near_misses(reference, ZOO)}"
        )
    if outputs < 1:
        raise UsageError(f"model {reference}: {outputs} outputs; a classifier needs at least one class")
    for key in ("input_shape", "num_classes", "num_labels", "in_chans"):
        if key in args and family in ("zoo", "timm", "hf"):
            raise UsageError(f"model {reference}: args.{key} comes from the data; leave it out")
    try:
        model = _build(family, name, args, input, outputs)
    except UsageError:
        raise
    except Exception as error:  # the libraries and the user's factories raise what they like
        raise UsageError(
            f"model {reference} cannot be built with args {dict(args)}: {type(error).__name__}: {error}"
        ) from error
    _check(reference, model, input, outputs)
    return model


def _build(family: str, name: str, args: Mapping[str, Any], input: Array, outputs: int) -> nn.Module:
    shape = input.shape
    if family == "timm":
        return from_timm(name, args, shape, outputs)
    if family == "hf" and is_tokens(input):
        return from_hf_language(name, args, shape[0], outputs)
    if family == "hf":
        return from_hf(name, args, shape, outputs)
    if family != "zoo":
        return from_factory(family, name, args, shape, outputs)
    if name not in ZOO:
        raise UsageError(f"zoo:{name}: no such network; {near_misses(name, ZOO)}")
    model = call(f"zoo:{name}", ZOO[name], args, {"input_shape": shape, "num_classes": outputs})
    assert isinstance(model, nn.Module)
    return model


def _check(reference: str, model: nn.Module, input: Array, outputs: int) -> None:
    """Raise UsageError unless two blank samples give [2, outputs], of a language model [2, L, outputs]."""
    language = is_language_model(model)
    if language and not is_tokens(input):
        raise UsageError(
            f"model {reference} is a language model, which takes rows of token ids int32 [L]; this input is {input}"
        )
    wanted = [2, *input.shape, outputs] if language else [2, outputs]
    modes = [(module, module.training) for module in model.modules()]
    device = next((parameter.device for parameter in model.parameters()), torch.get_default_device())
    model.eval()
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            found = model(torch.zeros(2, *input.shape, device=device, dtype=torch.long if language else torch.float32))
    except Exception as error:
        raise UsageError(
            f"model {reference} cannot take inputs of shape {list(input.shape)}: {type(error).__name__}: {error}"
        ) from error
    finally:
        for module, mode in modes:
            module.training = mode
    if not isinstance(found, Tensor):
        raise UsageError(f"model {reference} gives a {type(found).__name__}, not a tensor of logits")
    if list(found.shape) != wanted:
        raise UsageError(
            f"model {reference} gives {list(found.shape)} for 2 samples of {outputs} classes, where {wanted} is "
            "needed; a factory that names num_classes in its signature is told their number"
        )
