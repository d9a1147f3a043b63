"""The pilot: the first rows of the plan through the teacher, which codecs are fitted and chosen on."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kdcache.sources import Source
from kdcache.teacher.batch import run_ids
from kdcache.teacher.frozen import FrozenTeacher
from kdcache.teacher.positions import PILOT_SEQUENCES, pilot_logits, pilot_positions

__all__ = ["PILOT_ROWS", "pilot"]

PILOT_ROWS = 4096
_MOST_VALUES = 1 << 27  # of one field: half a gigabyte of float32


def pilot(
    source: Source,
    teacher: FrozenTeacher,
    ids: NDArray[np.int64],
    batch_rows: int,
    fields: Iterable[str],
    rows: int = PILOT_ROWS,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[dict[str, Tensor], Tensor]:
    """float32 [n, *shape] of each field on the host, and the keys int64 [n] of the logits' rows.

    `ids` are those of the plan, in its order. Of a language model the logits are [n, V], a few positions of each of the
    first sequences; of any other teacher with logits at each position a few of each sample. At most `rows` rows of a
    field, fewer where they are so wide that memory would be at stake.
    `progress(done, total)` counts samples.
    """
    found: dict[str, list[Tensor]] = {name: [] for name in fields}
    room = dict.fromkeys(found, rows)
    keys: list[Tensor] = []
    if teacher.head is not None:
        ids = ids[:PILOT_SEQUENCES]
    ids = ids[:rows]
    for start in range(0, len(ids), batch_rows):
        batch = ids[start : start + batch_rows]
        outputs, places = run_ids(teacher, source, batch), torch.from_numpy(batch)
        if "hidden" in outputs and "logits" in found:
            most = min(rows, max(_MOST_VALUES // teacher.outputs, 64))
            hidden = outputs.pop("hidden")
            outputs["logits"], places = pilot_logits(teacher, source, batch, hidden, -(-most // len(ids)))
        elif "logits" in found and outputs["logits"].ndim == 3:
            dense = outputs["logits"]
            chosen, places = pilot_positions(source, batch, dense.shape[1], -(-rows // len(ids)))
            outputs["logits"] = dense.flatten(0, 1)[chosen.to(dense.device)]
        for name, parts in found.items():
            values = outputs[name]
            if start == 0:
                room[name] = min(rows, max(_MOST_VALUES // values[0].numel(), 64))
            parts.append(values[: room[name]].cpu())
            room[name] -= len(parts[-1])
            if name == "logits":
                keys.append(places[: len(parts[-1])])
        if progress:
            progress(start + len(batch), len(ids))
        if not any(room.values()):
            break
    empty = torch.empty(0, dtype=torch.int64)
    return {name: torch.cat(parts) for name, parts in found.items()}, torch.cat(keys) if keys else empty
