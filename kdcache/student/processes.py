"""Device, precision and processes of a fit, by way of Accelerate; a fit alone on a CPU is the same code."""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import Tensor, nn

from kdcache.config.table import Precision
from kdcache.errors import UsageError
from kdcache.interrupt import StopFlag

__all__ = ["asked_to_stop", "open_accelerator", "same_buffers", "seed_device"]

AGREE_STEPS = 16


def open_accelerator(precision: Precision) -> Any:
    """The Accelerator of this process; UsageError where the machine or an earlier fit rules the precision out."""
    from accelerate import Accelerator

    # Accelerate joins the processes of a torchrun job by itself on GPUs alone; on CPUs it has to be told.
    cpu = "LOCAL_RANK" in os.environ and not torch.cuda.is_available()
    try:
        return Accelerator(cpu=cpu, mixed_precision="no" if precision == "fp32" else precision)
    except ValueError as error:
        cause = str(error).splitlines()[0]
        if "already been initialized" in cause:
            cause = "this process has begun with another precision; fit in a process of its own"
        raise UsageError(f"precision = {precision!r} cannot be had here: {cause}") from error


def seed_device(seed: int, device: torch.device) -> None:
    """Seed what dropout draws from. Done before every step, so that a resumed run needs no generator's state.

    `torch.manual_seed` does the same for every backend that torch knows, and takes 180 µs instead of 2.
    """
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)


def asked_to_stop(flag: StopFlag, accelerator: Any, step: int) -> bool:
    """Whether this process was asked to stop; of several, whether any was, every 16th step: they must stop together."""
    if accelerator.num_processes == 1:
        return flag.name is not None
    if step % AGREE_STEPS:
        return False
    return bool(accelerator.reduce(torch.tensor(float(flag.name is not None), device=accelerator.device), "sum") > 0)


def same_buffers(module: nn.Module, accelerator: Any) -> None:
    """Give every process the main one's buffers: batch norm's running statistics drift apart otherwise."""
    if accelerator.num_processes > 1:
        from accelerate.utils import broadcast

        for buffer in module.buffers():
            received: Tensor = broadcast(buffer)
            buffer.copy_(received)
