"""The frozen teacher: built once, never trained here, run in inference mode at the precision asked for."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor, nn

from kdcache.arrays import Array
from kdcache.config import TeacherConfig
from kdcache.errors import TeacherError, UsageError
from kdcache.fingerprint import sha256
from kdcache.models import InputSpec, apply_weights, build_model, load_weights
from kdcache.taps import pool_spatial, tap_outputs

__all__ = ["FrozenTeacher", "load_teacher"]

_AUTOCAST = {"fp16": torch.float16, "bf16": torch.bfloat16}


def load_teacher(
    config: TeacherConfig, array: Array, classes: int | None, default: InputSpec, weights: Path | None = None
) -> FrozenTeacher:
    """The teacher of a recipe for inputs of `array`, with `weights` (or the recipe's).

    Inputs are scaled as the weights file says, else as the recipe says, else by `default`. Raises UsageError.
    """
    path = weights or config.weights
    if path is None and config.fit is not None:
        raise UsageError(
            "teacher: the recipe trains its teacher first (teacher.fit); use `kdcache run RECIPE --out DIR`, "
            "or give `kdcache dump --weights FILE`"
        )
    tensors, info = load_weights(path) if path else ({}, None)
    outputs = info.outputs if info else classes
    if outputs is None:
        raise UsageError(
            "teacher: neither the source nor the weights say how many classes there are; give the source labels "
            "or `classes`, or take weights that kdcache wrote"
        )
    if outputs != (classes or outputs):
        raise UsageError(
            f"{path}: the teacher gives {outputs} outputs, the source has {classes} classes; use the weights of a "
            "teacher for these classes"
        )
    model = build_model(config.model, config.args, input=array, outputs=outputs)
    if path:
        apply_weights(model, tensors, path)
    spec = default
    if info and info.input_spec.mean is not None:
        spec = info.input_spec
    elif config.input:
        spec = InputSpec(config.input.mean, config.input.std)
    return FrozenTeacher(model, spec, config, outputs)


class FrozenTeacher:
    """Batches of stored inputs in, float32 logits and feature maps out."""

    def __init__(self, model: nn.Module, input_spec: InputSpec, config: TeacherConfig, outputs: int) -> None:
        self.device = _device()
        self.input_spec, self.outputs = input_spec, outputs
        self.config = config
        self._precision = config.precision
        # Convolutions run 1.6 to 1.7 times as fast on channels-last tensors, measured on a CPU.
        frozen: nn.Module = model.eval().requires_grad_(False).to(self.device)
        self.model = frozen.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def fingerprint(self) -> str:
        """SHA-256 of the weights themselves, whatever file they came from."""
        state = {name: tensor.cpu().contiguous() for name, tensor in self.model.state_dict().items()}
        return sha256([safetensors.torch.save(state)])

    @torch.inference_mode()
    def __call__(self, inputs: Tensor) -> dict[str, Tensor]:
        """`logits` float32 [B, C] and one float32 tensor for each tap, on the teacher's device.

        NaN or infinity is tried again in fp32; rows that stay so raise NotFinite with their places in the batch.
        """
        outputs = self._forward(inputs, self._precision)
        if (bad := _not_finite(outputs)) is not None and self._precision != "fp32":
            outputs = self._forward(inputs, "fp32")
            bad = _not_finite(outputs)
        if bad is not None:
            raise NotFinite(bad)
        return outputs

    def _forward(self, inputs: Tensor, precision: str) -> dict[str, Tensor]:
        x = self.input_spec.apply(inputs.to(self.device, non_blocking=True))
        if x.ndim == 4:
            x = x.contiguous(memory_format=torch.channels_last)
        with self._autocast(precision), tap_outputs(self.model, self.config.taps) as taps:
            logits = self.model(x)
        found: Mapping[str, Tensor] = {"logits": logits, **taps}
        if self.config.pool == "avg":
            found = {name: pool_spatial(value) if name in taps else value for name, value in found.items()}
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
