"""A network with what belongs to it: how it is named, how its inputs are scaled, its weights file.

A weights file is safetensors with one metadata key, `kdcache`: the `WeightsInfo` as canonical JSON, so that the file
alone says which network it is for. Files of other origin, without that key, are read too.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from kdcache.arrays import DTYPES, Array
from kdcache.errors import CheckpointError, DataError, MissingExtra, TrustError, UsageError
from kdcache.files import replace_bytes
from kdcache.fingerprint import canonical, file_digest
from kdcache.zoo.input_spec import InputSpec
from kdcache.zoo.language import vocabulary_of
from kdcache.zoo.reference import build_model
from kdcache.zoo.sequence import LanguageModel, is_language_model, is_tokens
from kdcache.zoo.sequence_classifier import check_vocabulary

__all__ = [
    "InputSpec",
    "LanguageModel",
    "WeightsInfo",
    "apply_weights",
    "build_model",
    "check_vocabulary",
    "is_language_model",
    "is_tokens",
    "load_model",
    "load_weights",
    "partial_weights",
    "save_weights",
    "vocabulary_of",
    "weights_digest",
]

METADATA_KEY = "kdcache"
METADATA_BYTES = 1 << 20
INPUTS = 16  # a network's at most
NAMED = 3  # wrong weights that an error names


@dataclass(frozen=True)
class WeightsInfo:
    """Which network a weights file is for. `extra` holds whatever JSON its writer wants to keep with it.

    `others` is the arrays of the inputs after the first, model(input, *others); files that are older than this key
    are read as having none.
    """

    model: str
    args: dict[str, Any]
    input: Array
    outputs: int
    input_spec: InputSpec = field(default_factory=InputSpec)
    extra: dict[str, Any] = field(default_factory=dict)
    others: tuple[Array, ...] = ()


def save_weights(path: Path, model: nn.Module, info: WeightsInfo) -> None:
    """Write the file atomically; equal weights and info give equal bytes. Raises StorageError."""
    try:
        kept = asdict(info)
        if not info.others:  # so that a file of one input is the same, byte for byte, as before there could be more
            del kept["others"]
        metadata = canonical(kept).decode()
    except (TypeError, ValueError) as error:
        raise UsageError(f"{path}: args and extra must be JSON to be kept with the weights: {error}") from error
    if len(metadata) > METADATA_BYTES:
        raise UsageError(
            f"{path}: args and extra take {len(metadata)} bytes as JSON; at most {METADATA_BYTES} are kept"
        )
    # Clones, because safetensors refuses tensors that share memory, as tied weights do.
    tensors = {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, tensor in model.state_dict().items()
    }
    replace_bytes(path, safetensors.torch.save(tensors, metadata={METADATA_KEY: metadata}))


def load_weights(path: Path) -> tuple[dict[str, Tensor], WeightsInfo | None]:
    """The tensors of a safetensors file, on the CPU, and what it says of itself. Raises CheckpointError."""
    try:
        with safetensors.safe_open(path, framework="pt", device="cpu") as file:
            text = (file.metadata() or {}).get(METADATA_KEY)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is no dict)
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: there is no such weights file") from error
    except Exception as error:
        # A stranger's file may fail anywhere inside the parser, in ways that its authors did not foresee.
        raise CheckpointError(f"{path}: not a safetensors file, or damaged: {error}") from error
    return tensors, None if text is None else _read_info(path, text)


def load_model(path: Path, *, allow_import: bool = False) -> tuple[nn.Module, WeightsInfo]:
    """The network that the file says it is for, with its weights, in training mode.

    `allow_import` lets the file name package.module:factory, that is, code to run: only for files of one's own.
    Raises CheckpointError, and TrustError for a file that names code without that leave.
    """
    tensors, info = load_weights(path)
    if info is None:
        raise CheckpointError(f"{path}: does not say which network it is for; build that one and apply these weights")
    family = info.model.partition(":")[0]
    if family not in ("zoo", "timm", "hf") and not allow_import:
        raise TrustError(
            f"{path}: names {info.model!r}, code that would be run to build it, which is refused; if the file is your "
            "own, allow it (`kdcache eval --allow-code`)"
        )
    args = {**info.args, "pretrained": False} if family == "timm" else info.args
    # Of two networks that one type of hf: can be over tokens, only a language model has its head beside the body.
    positions = 0 if "head.weight" in tensors else None
    build = partial(
        build_model,
        info.model,
        args,
        input=info.input,
        outputs=info.outputs,
        extra=info.others,
        positions=positions,
    )
    try:
        # On the meta device a network of any size takes no memory, until it is known to match the file's tensors.
        with torch.device("meta" if family == "zoo" else "cpu"):
            model = build()
        _compare(model, tensors, path)
        # What the file does not hold has to be made anew: a network over a graph keeps the graph in such buffers.
        if family == "zoo" and {name for name, _ in model.named_buffers()} - tensors.keys():
            family = "built"
            model = build()
    except MissingExtra:
        raise
    except UsageError as error:
        raise CheckpointError(str(error) if str(path) in str(error) else f"{path}: {error}") from error
    if family == "zoo":
        model = model.to_empty(device="cpu")
    model.load_state_dict(tensors)
    return model, info


def apply_weights(model: nn.Module, tensors: Mapping[str, Tensor], path: Path) -> None:
    """Copy tensors read from `path` into a network; raises UsageError unless every name and shape agrees."""
    _compare(model, tensors, path)
    model.load_state_dict(tensors)


def partial_weights(model: nn.Module, tensors: Mapping[str, Tensor], path: Path) -> int:
    """Copy what agrees in name and shape from tensors read from `path`, and leave the rest as it is; how many agreed.

    So a student begins with a part of another network: its body without its head, or its first layers of more. Raises
    UsageError where nothing agrees.
    """
    wanted = model.state_dict()
    found = {name: tensor for name, tensor in tensors.items() if name in wanted and wanted[name].shape == tensor.shape}
    if not found:
        raise UsageError(
            f"{path}: none of its {len(tensors)} weights has the name and shape of one of this "
            f"{type(model).__name__}'s {len(wanted)}, for instance {', '.join(list(tensors)[:NAMED])} in the file and "
            f"{', '.join(list(wanted)[:NAMED])} in the network; give the weights of a network of the same family"
        )
    model.load_state_dict(found, strict=False)
    return len(found)


def weights_digest(path: Path) -> str:
    """Hexadecimal SHA-256 of a weights file; raises CheckpointError where it cannot be read."""
    try:
        return file_digest(path)
    except DataError as error:
        raise CheckpointError(str(error)) from error


def _compare(model: nn.Module, tensors: Mapping[str, Tensor], path: Path) -> None:
    wanted = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    wrong = [f"{name} is missing, {list(shape)} wanted" for name, shape in wanted.items() if name not in found]
    wrong += [
        f"{name} is {list(found[name])} in the file and {list(shape)} in the network"
        for name, shape in wanted.items()
        if name in found and found[name] != shape
    ]
    wrong += [f"{name} {list(shape)} is not in the network" for name, shape in found.items() if name not in wanted]
    if wrong:
        more = f"; and {len(wrong) - NAMED} more" if len(wrong) > NAMED else ""
        raise UsageError(
            f"{path}: its weights are not those of this {type(model).__name__}: {'; '.join(wrong[:NAMED])}{more}; "
            "give the model and args that it was trained with"
        )


def _read_info(path: Path, text: str) -> WeightsInfo:
    def refuse(what: str) -> NoReturn:
        raise CheckpointError(f"{path}: its {METADATA_KEY} metadata {what}")

    if len(text) > METADATA_BYTES:
        refuse(f"has {len(text)} characters; at most {METADATA_BYTES} are read")
    try:
        value = json.loads(text, object_pairs_hook=_unique, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        refuse(f"is not JSON: {error}")
    match value:
        case {
            "model": str(model),
            "args": dict(args),
            "input": {"dtype": str(dtype), "shape": list(shape)},
            "outputs": int(outputs),
            "input_spec": {"mean": mean, "std": std},
            "extra": dict(extra),
        }:
            pass
        case _:
            refuse("does not have the keys model, args, input, outputs, input_spec and extra, each of its kind")
    try:
        array = _array(dtype, shape)
        others = _others(value.get("others", []))
    except ValueError as error:
        refuse(str(error))
    if type(outputs) is not int or not 0 < outputs < 1 << 31:
        refuse(f"gives {str(outputs)[:80]} outputs")
    try:
        spec = InputSpec(_floats(mean), _floats(std))
    except (UsageError, ValueError, OverflowError) as error:
        refuse(f"has an unusable input_spec: {error}")
    return WeightsInfo(model, args, array, outputs, spec, extra, others)


def _array(dtype: str, shape: list[Any]) -> Array:
    if dtype not in DTYPES:
        raise ValueError(f"names the dtype {dtype!r}, which is none of {', '.join(DTYPES)}")
    if (
        len(shape) > 8
        or not all(type(side) is int and 0 < side < 1 << 31 for side in shape)
        or (math.prod(shape) >= 1 << 31)
    ):
        raise ValueError(f"gives an input shape that is out of bounds: {str(shape)[:80]}")
    return Array(dtype, tuple(shape))


def _others(values: object) -> tuple[Array, ...]:
    if not isinstance(values, list) or len(values) > INPUTS:
        raise ValueError(f"gives further inputs that are no list of at most {INPUTS}")
    arrays = []
    for value in values:
        match value:
            case {"dtype": str(dtype), "shape": list(shape)}:
                arrays.append(_array(dtype, shape))
            case _:
                raise ValueError(f"gives a further input without its dtype and shape: {str(value)[:80]}")
    return tuple(arrays)


def _floats(values: object) -> tuple[float, ...] | None:
    if values is None:
        return None
    if not isinstance(values, list) or not all(type(value) in (int, float) for value in values):
        raise ValueError("mean and std must be lists of numbers, or null")
    return tuple(float(value) for value in values)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) != len(pairs):
        raise ValueError("a key is given twice")
    return table


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")
