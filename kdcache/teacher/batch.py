"""One batch through the teacher, whatever happens to it: what cannot be computed is named by its samples."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kdcache.errors import KdcacheError, TeacherError
from kdcache.sources import Source
from kdcache.teacher.frozen import FrozenTeacher, NotFinite

__all__ = ["run_batch", "run_ids", "token_chunks"]


def run_batch(
    teacher: FrozenTeacher,
    inputs: Tensor,
    ids: NDArray[np.int64],
    segment: Tensor | None = None,
    others: Sequence[Tensor] = (),
) -> dict[str, Tensor]:
    """The teacher's outputs for one batch; halved when memory runs out, bisected to the sample when it raises.

    `inputs` is the first of `teacher.inputs`, `others` the rest of them.
    """
    try:
        return teacher(inputs, segment, others)
    except NotFinite as error:
        raise _not_finite(teacher, [int(ids[row]) for row in error.rows]) from None
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
    parts = [
        run_batch(
            teacher, inputs[cut], ids[cut], None if segment is None else segment[cut], [one[cut] for one in others]
        )
        for cut in (slice(half), slice(half, None))
    ]
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def run_ids(teacher: FrozenTeacher, source: Source, ids: NDArray[np.int64]) -> dict[str, Tensor]:
    """The teacher's outputs for these samples of a source."""
    rows = {name: torch.from_numpy(values) for name, values in source.read(ids).items()}
    first, *others = (rows[name] for name in teacher.config.inputs)
    return run_batch(teacher, first, ids, rows.get("segment"), others)


def token_chunks(teacher: FrozenTeacher, hidden: Tensor, ids: NDArray[np.int64]) -> Iterator[tuple[int, int, Tensor]]:
    """(first, last, logits float32 [last - first, V]) over the flattened positions of `hidden` [B, P, D].

    Raises TeacherError naming the samples where the head gives NaN or infinity, or raises.
    """
    assert teacher.head is not None, "only a language model gives hidden states"
    per_row = hidden.shape[1]
    try:
        for first, last, logits in teacher.head.chunks(hidden.flatten(0, 1)):
            if not torch.isfinite(logits.sum()):
                bad = (~torch.isfinite(logits).all(1)).nonzero().flatten()
                if len(bad):
                    rows = sorted(set(((bad + first) // per_row).tolist()))
                    raise _not_finite(teacher, [int(ids[row]) for row in rows])
            yield first, last, logits
    except torch.OutOfMemoryError as error:
        raise TeacherError(
            f"teacher {teacher.config.model}: its head does not fit into memory for one token: {error}"
        ) from error


def _not_finite(teacher: FrozenTeacher, samples: list[int]) -> TeacherError:
    return TeacherError(
        f"teacher {teacher.config.model}: NaN or infinity for {len(samples)} samples of a batch, ids {samples[:8]}, "
        "in fp32; look at these samples, at the teacher's weights and at [teacher.input]"
    )
