"""A perturbation that turns the teacher from its own answer: projected gradient ascent (Madry et al. 2018)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import cross_entropy

from kdcache.config.views import AttackConfig
from kdcache.errors import KdcacheError, TeacherError, UsageError
from kdcache.keyed import keyed_hash
from kdcache.teacher.frozen import FrozenTeacher

__all__ = ["attack"]


def attack(
    teacher: FrozenTeacher,
    images: Tensor,
    ids: NDArray[np.int64],
    config: AttackConfig,
    key: str,
    others: Sequence[Tensor] = (),
) -> Tensor:
    """int8 of the shape of `images` (uint8 [B, ...]): |delta| <= epsilon, and images + delta within 0 to 255.

    It begins at an even draw from -epsilon to epsilon for each value, keyed by `key` and the sample's id, and takes
    `steps` steps of `step` along the sign of the gradient of the cross-entropy between the teacher's logits and its own
    most likely class on the images as they are, held within epsilon and 0 to 255 after each; at the end it is rounded.
    No label is needed. `others`: the teacher's inputs after the first. Always in fp32; TeacherError where the teacher
    raises.
    """
    if teacher.head is not None:
        raise UsageError("views.attack: is for images, and the teacher is a language model")
    step = config.step or 2.5 * config.epsilon / config.steps
    rest = [one.to(teacher.device) for one in others]
    still = images.to(teacher.device).float()
    low, high = (-still).clamp(min=-config.epsilon), (255 - still).clamp(max=config.epsilon)
    delta = _start(still, ids, config.epsilon, key).clamp(low, high)
    deterministic = torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True)
    try:
        with deterministic, torch.inference_mode(False), torch.enable_grad():
            with torch.no_grad():
                answer = _logits(teacher, still, rest).argmax(-1)
            for _ in range(config.steps):
                moved = (still + delta).requires_grad_()
                said = _logits(teacher, moved, rest)
                loss = cross_entropy(said.flatten(0, -2), answer.flatten(), reduction="sum")
                (slope,) = torch.autograd.grad(loss, moved)
                delta = (delta + step * slope.sign()).clamp(low, high)
    except (KdcacheError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        raise TeacherError(
            f"teacher {teacher.config.model}: raised {type(error).__name__} while it was attacked, on {len(ids)} "
            f"samples from id {int(ids[0])}: {error}"
        ) from error
    return delta.round().to(torch.int8)


def _start(still: Tensor, ids: NDArray[np.int64], epsilon: int, key: str) -> Tensor:
    places = ids[:, None] * still[0].numel() + np.arange(still[0].numel())
    even = (keyed_hash(f"kdcache-attack-1|{key}", places) >> np.uint64(40)).astype(np.float32) * np.float32(
        2.0**-23
    ) - 1
    return torch.from_numpy(even * epsilon).view(still.shape).to(still.device)


def _logits(teacher: FrozenTeacher, values: Tensor, others: Sequence[Tensor]) -> Tensor:
    """The teacher's logits of float inputs in the units of the stored ones."""
    spec = teacher.input_spec
    said = teacher.model(spec.standardised(values) if spec.mean else values, *others)
    return (said if isinstance(said, Tensor) else said["logits"]).float()  # type: ignore[no-any-return]
