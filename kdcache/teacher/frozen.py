"""The frozen teacher: built once, never trained here, run in inference mode at the precision asked for."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from kdcache.arrays import Array, named_arrays, outputs_for, sequence_positions
from kdcache.config import TeacherConfig
from kdcache.errors import TeacherError, UsageError
from kdcache.fingerprint import sha256
from kdcache.models import (
    InputSpec,
    apply_weights,
    build_model,
    is_language_model,
    is_tokens,
    load_weights,
    vocabulary_of,
)
from kdcache.taps import pool_spatial, tap_outputs
from kdcache.teacher.heads import Head
from kdcache.teacher.vocabulary import tokenizer_of, vocabulary_map

__all__ = ["FrozenTeacher", "NotFinite", "load_teacher"]

_AUTOCAST = {"fp16": torch.float16, "bf16": torch.bfloat16}


def load_teacher(
    config: TeacherConfig,
    arrays: Mapping[str, Array],
    classes: int | None,
    default: InputSpec,
    weights: Path | None = None,
) -> FrozenTeacher:
    """The teacher of a recipe for rows of these `arrays`, with `weights` (or the recipe's).

    Inputs are scaled as the weights file says, else as the recipe says, else by `default`. Raises UsageError.
    """
    path = weights or config.weights
    if path is None and config.fit is not None:
        raise UsageError(
            "teacher: the recipe trains its teacher first (teacher.fit); use `kdcache run RECIPE --out DIR`, "
            "or give `kdcache dump --weights FILE`"
        )
    tensors, info = load_weights(path) if path else ({}, None)
    array, *others = named_arrays(config.inputs, arrays, "teacher")
    classes, positions = outputs_for(arrays, classes), sequence_positions(arrays)
    tokens = is_tokens(array) and ("label" not in arrays or positions is not None)
    outputs = info.outputs if info else (vocabulary_of(config.model) if tokens else None) or classes
    if outputs is None:
        raise UsageError(
            "teacher: neither the source nor the weights say how many classes there are; give the source labels "
            "or `classes`, or take weights that kdcache wrote"
        )
    chosen = None
    if tokens:
        chosen = vocabulary_map(config.vocabulary, classes, outputs, str(path or config.model))
    elif config.vocabulary is not None:
        raise UsageError(f"teacher: vocabulary is for language models; the inputs here are {array}")
    elif outputs != (classes or outputs):
        raise UsageError(
            f"{path}: the teacher gives {outputs} outputs, the source has {classes} classes; use the weights of a "
            "teacher for these classes"
        )
    model = build_model(
        config.model, config.args, input=array, outputs=outputs, extra=others, positions=positions if tokens else None
    )
    if path:
        apply_weights(model, tensors, path)
    spec = default if config.inputs[0] == "input" else InputSpec()
    if info and info.input_spec.mean is not None:
        spec = info.input_spec
    elif config.input:
        spec = InputSpec(config.input.mean, config.input.std)
    teacher = FrozenTeacher(model, spec, config, classes if chosen is not None and classes else outputs, chosen)
    if is_tokens(array) and config.vocabulary is None:
        teacher.tokenizer = info.extra.get("tokenizer") if info else tokenizer_of(config.model)
    return teacher


class FrozenTeacher:
    """Batches of stored inputs in, float32 logits and feature maps out.

    Of a language model what comes out is `hidden` [B, P, D], one state for each target, in place of the logits: `head`
    turns them into logits in chunks. `vocabulary` int64 [V] is its id of each of the source's tokens (None: the same).
    """

    def __init__(
        self,
        model: nn.Module,
        input_spec: InputSpec,
        config: TeacherConfig,
        outputs: int,
        vocabulary: Tensor | None = None,
    ) -> None:
        self.device = _device()
        self.input_spec, self.outputs = input_spec, outputs
        self.config = config
        self._precision = config.precision
        # Convolutions run 1.6 to 1.7 times as fast on channels-last tensors, measured on a CPU.
        frozen: nn.Module = model.eval().requires_grad_(False).to(self.device)
        self.model = frozen.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.head: Head | None = None
        self.tokenizer: dict[str, Any] | None = None  # a fingerprint, where the weights or their folder tell it
        self._vocabulary = None if vocabulary is None else vocabulary.to(self.device)
        self._language = frozen if is_language_model(frozen) else None
        if self._language is not None:
            if config.pool != "none":
                raise UsageError(
                    f'teacher: pool = "{config.pool}" is for feature maps; the taps of a language model are [L, D]'
                )
            self.head = Head(self._language.head, self._vocabulary, _AUTOCAST.get(config.precision))

    def targets(self, length: int) -> int:
        """P: how many of a row's `length` tokens a language model has a distribution for.

        The last state of a causal model would predict a token that the row does not hold.
        """
        assert self._language is not None
        return length - 1 if self._language.causal else length

    def fingerprint(self) -> str:
        """SHA-256 of the weights themselves, whatever file they came from."""
        # Clones, because safetensors refuses tensors that share memory, as tied weights do.
        state = {
            name: tensor.cpu().clone(memory_format=torch.contiguous_format)
            for name, tensor in self.model.state_dict().items()
        }
        if self._vocabulary is not None:
            state["kdcache.vocabulary"] = self._vocabulary.cpu()
        return sha256([safetensors.torch.save(state)])

    @torch.inference_mode()
    def __call__(
        self, inputs: Tensor, segment: Tensor | None = None, others: Sequence[Tensor] = ()
    ) -> dict[str, Tensor]:
        """`logits` float32 [B, C] (or `hidden`) and one float32 tensor for each tap and each of the other outputs that
        the recipe names, on the teacher's device. `others`: the network's inputs after the first.

        NaN or infinity is tried again in fp32; rows that stay so raise NotFinite with their places in the batch.
        """
        outputs = self._forward(inputs, segment, others, self._precision)
        if (bad := _not_finite(outputs)) is not None and self._precision != "fp32":
            outputs = self._forward(inputs, segment, others, "fp32")
            bad = _not_finite(outputs)
        if bad is not None:
            raise NotFinite(bad)
        return outputs

    def _forward(
        self, inputs: Tensor, segment: Tensor | None, others: Sequence[Tensor], precision: str
    ) -> dict[str, Tensor]:
        if self.head is not None:
            return self._hidden(inputs, segment, precision)
        x = self.input_spec.apply(inputs.to(self.device, non_blocking=True))
        if x.ndim == 4:
            x = x.contiguous(memory_format=torch.channels_last)
        with self._autocast(precision), tap_outputs(self.model, self.config.taps) as taps:
            said = self.model(x, *(one.to(self.device) for one in others))
        named = {"logits": said} if isinstance(said, Tensor) else said
        for field, name in self.config.outputs.items():
            if name not in named:
                raise UsageError(
                    f"teacher.outputs: {field} = {name!r}: {type(self.model).__name__} has no such output, only "
                    f"{', '.join(named)}"
                )
        found: Mapping[str, Tensor] = {
            "logits": named["logits"],
            **{field: named[name] for field, name in self.config.outputs.items()},
            **taps,
        }
        if self.config.pool == "avg":
            found = {name: pool_spatial(value) if name in taps else value for name, value in found.items()}
        return {name: value.float() for name, value in found.items()}

    def _hidden(self, inputs: Tensor, segment: Tensor | None, precision: str) -> dict[str, Tensor]:
        assert self._language is not None
        tokens = inputs.to(self.device, torch.long, non_blocking=True)
        if self._vocabulary is not None:
            tokens = self._vocabulary[tokens]
        segments = None if segment is None else segment.to(self.device, torch.long, non_blocking=True)
        with self._autocast(precision), tap_outputs(self.model, self.config.taps) as taps:
            states = self._language.hidden(tokens, segments)
        for name in self.config.taps:
            if name not in taps:
                raise UsageError(
                    f"tap {name} = {self.config.taps[name]!r}: this module does not run before the head; tap another"
                )
        found = {"hidden": states[:, : self.targets(tokens.shape[1])], **taps}
        return {name: value.float() for name, value in found.items()}

    def _autocast(self, precision: str) -> AbstractContextManager[object]:
        dtype = _AUTOCAST.get(precision)
        return torch.autocast(self.device.type, dtype=dtype) if dtype else nullcontext()


def _device() -> torch.device:
    """This process's own GPU among those of its machine, as `torchrun` numbers them; else the CPU."""
    return (
        torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0))) if torch.cuda.is_available() else torch.device("cpu")
    )


class NotFinite(TeacherError):
    """Some rows of a batch came out as NaN or infinity, even in fp32."""

    def __init__(self, rows: list[int]) -> None:
        super().__init__(f"NaN or infinity in rows {rows}")
        self.rows = rows


def _not_finite(outputs: Mapping[str, Tensor]) -> list[int] | None:
    # A sum is finite unless something in it is not (or it overflows, which the second look tells apart): one pass
    # with no tensor of booleans.
    if all(torch.isfinite(value.sum()) for value in outputs.values()):
        return None
    bad = torch.stack([~torch.isfinite(value).flatten(1).all(1) for value in outputs.values()]).any(0)
    return bad.nonzero().flatten().tolist() or None
