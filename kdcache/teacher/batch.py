"""One batch through the teacher, whatever happens to it: what cannot be computed is named by its samples."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kdcache.errors import KdcacheError, TeacherError
from kdcache.teacher.frozen import FrozenTeacher, NotFinite

__all__ = ["run_batch"]


def run_batch(teacher: FrozenTeacher, inputs: Tensor, ids: NDArray[np.int64]) -> dict[str, Tensor]:
    """The teacher's outputs for one batch; halved when memory runs out, bisected to the sample when it raises."""
    try:
        return teacher(inputs)
    except NotFinite as error:
        named = [int(ids[row]) for row in error.rows[:8]]
        raise TeacherError(
            f"teacher {teacher.config.model}: NaN or infinity for {len(error.rows)} samples of a batch, ids {named}, "
            "in fp32; look at these samples, at the teacher's weights and at [teacher.input]"
        ) from None
    except KdcacheError:
        raise
    except Exception as error:
        if len(ids) == 1:
            raise TeacherError(
                f"teacher {teacher.config.model}: raised {type(error).__name__} for sample {int(ids[0])}: {error}"
            ) from error
        if isinstance(error, torch.OutOfMemoryError):
            torch.cuda.empty_cache()
    half = len(ids) // 2
    parts = [run_batch(teacher, inputs[:half], ids[:half]), run_batch(teacher, inputs[half:], ids[half:])]
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
