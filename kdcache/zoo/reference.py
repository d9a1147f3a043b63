"""From a reference such as `zoo:resnet20` to a network that is known to fit its inputs and what is wanted of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from kdcache.arrays import Array
from kdcache.errors import KdcacheError, UsageError
from kdcache.near_misses import near_misses
from kdcache.zoo import ZOO
from kdcache.zoo.foreign import call, from_factory, from_hf, from_timm
from kdcache.zoo.language import from_hf_language
from kdcache.zoo.sequence import is_language_model, is_tokens
from kdcache.zoo.sequence_classifier import from_hf_classifier

__all__ = ["build_model"]

_TAKEN = ("input_shape", "num_classes", "extra_shapes", "num_labels", "in_chans")


def build_model(
    reference: str,
    args: Mapping[str, Any],
    *,
    input: Array,
    outputs: int,
    extra: Sequence[Array] = (),
    positions: int | None = 0,
) -> nn.Module:
    """A network that takes float inputs [B, *input.shape] and gives logits, in training mode.

    Logits are [B, outputs], or [B, P, outputs] of a network that judges P places of a sample (pixels, boxes, tokens).
    A network gives them as one tensor, or as a mapping of named tensors with "logits" among them. `outputs` is the
    number of classes, or of values where there are no classes. A network may take further inputs, model(input, *extra),
    which come as they are stored. A language model (`kdcache.zoo.sequence`) takes tokens int64 [B, L] and gives
    [B, L, outputs].

    `reference` is zoo:NAME, timm:NAME, hf:NAME (a model type or a local folder) or package.module:factory; `args` are
    its factory's keyword arguments. `positions` is how many tokens of a row have a label each, None where samples have
    labels of another kind, 0 where that is not known: a type of hf: over tokens is built as a classifier of rows for
    None and as a language model otherwise. Two blank samples are passed through to see that the shapes are as stated;
    no random number is drawn for that. Raises UsageError, and SourceError for a graph that cannot be read.
    """
    family, colon, name = reference.partition(":")
    if not (colon and family and name):
        raise UsageError(
            f"model {reference!r} must be written zoo:NAME, timm:NAME, hf:NAME or package.module:factory; "
            f"zoo: {near_misses(reference, ZOO)}"
        )
    if outputs < 1:
        raise UsageError(f"model {reference}: {outputs} outputs; at least one class or value is needed")
    for key in _TAKEN:
        if key in args and family in ("zoo", "timm", "hf"):
            raise UsageError(f"model {reference}: args.{key} comes from the data; leave it out")
    try:
        model = _build(family, name, args, input, outputs, extra, positions)
    except KdcacheError:
        raise
    except Exception as error:  # the libraries and the user's factories raise what they like
        raise UsageError(
            f"model {reference} cannot be built with args {dict(args)}: {type(error).__name__}: {error}"
        ) from error
    _check(reference, model, input, outputs, extra, positions)
    return model


def _build(
    family: str,
    name: str,
    args: Mapping[str, Any],
    input: Array,
    outputs: int,
    extra: Sequence[Array],
    positions: int | None,
) -> nn.Module:
    shape = input.shape
    if family == "timm":
        return from_timm(name, args, shape, outputs)
    classify = args.get("task") == "classify" or (positions is None and "task" not in args)
    if family == "hf" and is_tokens(input) and classify:
        return from_hf_classifier(name, args, shape[0], outputs)
    if family == "hf" and is_tokens(input):
        return from_hf_language(name, args, shape[0], outputs)
    if family == "hf":
        return from_hf(name, args, shape, outputs)
    given = {"input_shape": shape, "num_classes": outputs, "extra_shapes": tuple(one.shape for one in extra)}
    if family != "zoo":
        return from_factory(family, name, args, given)
    if name not in ZOO:
        raise UsageError(f"zoo:{name}: no such network; {near_misses(name, ZOO)}")
    model = call(f"zoo:{name}", ZOO[name], args, given)
    assert isinstance(model, nn.Module)
    return model


def _check(
    reference: str, model: nn.Module, input: Array, outputs: int, extra: Sequence[Array], positions: int | None
) -> None:
    """Raise UsageError unless two blank samples give logits of the shapes that `build_model` states."""
    language = is_language_model(model)
    if language and not is_tokens(input):
        raise UsageError(
            f"model {reference} is a language model, which takes rows of token ids int32 [L]; this input is {input}"
        )
    if language and positions is None:
        raise UsageError(
            f"model {reference} is a language model, which judges every token, and here a row has one label; an "
            "encoder such as hf:bert without args.task is built as a classifier of rows"
        )
    found = _blank_logits(reference, model, _blanks(model, language, input, extra))
    shape = list(found.shape)
    if language:
        wanted = [2, *input.shape, outputs]
    elif len(shape) == 3:
        wanted = [2, shape[1], outputs]
    else:
        wanted = [2, outputs]
    if shape != wanted:
        raise UsageError(
            f"model {reference} gives {shape} for 2 samples of {outputs} outputs, where {wanted} is needed; a factory "
            "that names num_classes in its signature is told their number"
        )


def _blanks(model: nn.Module, language: bool, input: Array, extra: Sequence[Array]) -> list[Tensor]:
    """Zeros for two samples of every input, where the model's weights are: the first as `InputSpec` leaves it."""
    device = next((parameter.device for parameter in model.parameters()), torch.get_default_device())
    kinds = [torch.long if language else torch.float32]
    kinds += [getattr(torch, one.dtype) if "float" in one.dtype else torch.long for one in extra]
    return [
        torch.zeros(2, *one.shape, device=device, dtype=kind) for one, kind in zip((input, *extra), kinds, strict=True)
    ]


def _blank_logits(reference: str, model: nn.Module, blanks: Sequence[Tensor]) -> Tensor:
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            found = model(*blanks)
    except Exception as error:
        shapes = " and ".join(str(list(blank.shape[1:])) for blank in blanks)
        raise UsageError(
            f"model {reference} cannot take inputs of shape {shapes}: {type(error).__name__}: {error}"
        ) from error
    finally:
        for module, mode in modes:
            module.training = mode
    if isinstance(found, Tensor):
        return found
    if not isinstance(found, Mapping):
        raise UsageError(
            f"model {reference} gives a {type(found).__name__}, not a tensor of logits or a mapping of named tensors"
        )
    for name, tensor in found.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor) or not tensor.dim() or len(tensor) != 2:
            what = list(tensor.shape) if isinstance(tensor, Tensor) else f"a {type(tensor).__name__}"
            raise UsageError(
                f"model {reference}: its output {name!r} is {what} for 2 samples; a tensor [2, ...] is needed"
            )
    if "logits" not in found:
        raise UsageError(f'model {reference}: its outputs are {", ".join(sorted(found))}; one must be "logits"')
    logits: Tensor = found["logits"]
    return logits
