"""Networks that other libraries build: `timm:NAME`, `hf:NAME`, `package.module:factory`.

None of them is imported before a recipe names it. What differs from a network of the zoo is settled by hooks rather
than by a wrapper, so that module paths (taps) and weight names stay the library's own.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from kdcache.errors import MissingExtra, UsageError
from kdcache.near_misses import near_misses
from kdcache.zoo.hugging_face import check_fields, library

__all__ = ["from_factory", "from_hf", "from_timm"]


def from_timm(name: str, args: Mapping[str, Any], shape: Sequence[int], outputs: int) -> nn.Module:
    """`timm.create_model`; random weights unless `args` say `pretrained = true`."""
    try:
        import timm
    except ImportError as error:
        raise MissingExtra("timm", "timm", f"the model timm:{name}") from error
    if not timm.is_model(name):
        raise UsageError(f"timm:{name}: timm has no such model; {near_misses(name, timm.list_models())}")
    if "checkpoint_path" in args:
        raise UsageError(f"timm:{name}: args.checkpoint_path is not taken: give the weights as safetensors instead")
    model: nn.Module = timm.create_model(
        name, **{"pretrained": False, **args, "num_classes": outputs, "in_chans": _channels(f"timm:{name}", shape)}
    )
    return _with_channel_axis(model, shape)


def from_hf(name: str, args: Mapping[str, Any], shape: Sequence[int], outputs: int) -> nn.Module:
    """An image classifier of transformers: a local folder with its weights, or a model type with random ones.

    `args` are fields of the model's configuration. Code that a folder brings along is never run.
    """
    transformers = library(name)
    channels = _channels(f"hf:{name}", shape)
    if Path(name).is_dir():
        model = transformers.AutoModelForImageClassification.from_pretrained(
            name, num_labels=outputs, use_safetensors=True, trust_remote_code=False, local_files_only=True, **args
        )
    else:
        known = transformers.models.auto.modeling_auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES
        if name not in known:
            raise UsageError(
                f"hf:{name} is neither a local folder nor an image classifier of transformers; "
                f"{near_misses(name, known)}"
            )
        usual = transformers.AutoConfig.for_model(name).to_dict()
        check_fields(name, args, usual)
        size = {"num_channels": channels, "image_size": shape[-1]}
        filled = {key: value for key, value in size.items() if key in usual}
        config = transformers.AutoConfig.for_model(name, **{**filled, **args, "num_labels": outputs})
        model = transformers.AutoModelForImageClassification.from_config(config, trust_remote_code=False)
    model.register_forward_hook(_logits)
    return _with_channel_axis(model, shape)


def from_factory(module: str, name: str, args: Mapping[str, Any], given: Mapping[str, Any]) -> nn.Module:
    """What a factory of the user's own returns; of `given` what it names: input_shape, num_classes, extra_shapes."""
    try:
        place = importlib.import_module(module)
    except Exception as error:
        raise UsageError(
            f"{module}:{name}: module {module} cannot be imported ({type(error).__name__}: {error}); "
            f"its folder must be on PYTHONPATH. Before the colon, {near_misses(module, ('hf', 'timm', 'zoo'))}"
        ) from error
    factory = getattr(place, name, None)
    if not callable(factory):
        callables = [key for key, value in vars(place).items() if callable(value)]
        raise UsageError(f"{module}:{name}: {module} has no such function; {near_misses(name, callables)}")
    model = call(f"{module}:{name}", factory, args, given)
    if not isinstance(model, nn.Module):
        raise UsageError(f"{module}:{name} gives a {type(model).__name__}, not a torch.nn.Module")
    return model


def call(reference: str, factory: Callable[..., object], args: Mapping[str, Any], given: Mapping[str, Any]) -> object:
    """`factory(**given, **args)`, `given` cut to the names in its signature; wrong `args` are a UsageError."""
    parameters = inspect.signature(factory).parameters
    wild = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    for key in args:
        if key not in parameters and not wild:
            names = [name for name in parameters if name not in given]
            raise UsageError(f"{reference}: unknown argument {key!r} in args; {near_misses(key, names)}")
    passed = {**{key: value for key, value in given.items() if key in parameters}, **args}
    try:
        inspect.signature(factory).bind(**passed)
    except TypeError as error:
        raise UsageError(f"{reference}: {error}; its parameters are {', '.join(parameters)}") from error
    return factory(**passed)


def _channels(reference: str, shape: Sequence[int]) -> int:
    if len(shape) not in (2, 3):
        raise UsageError(f"{reference} takes images [C, H, W] or [H, W]; this input has shape {list(shape)}")
    return 1 if len(shape) == 2 else shape[0]


def _with_channel_axis(model: nn.Module, shape: Sequence[int]) -> nn.Module:
    if len(shape) == 2:
        model.register_forward_pre_hook(_unsqueeze)
    return model


def _unsqueeze(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (inputs[0].unsqueeze(1), *inputs[1:])


def _logits(module: nn.Module, inputs: object, output: Any) -> Tensor:
    logits: Tensor = output.logits
    return logits
