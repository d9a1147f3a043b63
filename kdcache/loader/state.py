"""A loader's place in its order, as JSON of less than 1 KB that names no rank, batch size or thread."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdcache.errors import CheckpointError, StoreMismatch
from kdcache.loader.order import ORDER_VERSION

__all__ = ["check_state", "mask_digest", "order_identity"]

_CURES = {
    "version": "go on with the kdcache that wrote the state",
    "alignment": "go on with the store that the state was saved from, or one dumped --like it",
    "seed": "build the loader with the state's seed",
    "lanes": "build the loader with the state's lanes",
    "shuffle": "build the loader with the state's shuffle",
    "rows": "select the same rows as when the state was saved",
    "view": "build the loader with the state's view",
}


def mask_digest(rows: NDArray[np.bool_] | None) -> str | None:
    """SHA-256 of a mask: its length in decimal, a newline, its bits packed with the first row highest."""
    if rows is None:
        return None
    return hashlib.sha256(f"{len(rows)}\n".encode() + np.packbits(rows).tobytes()).hexdigest()


def order_identity(
    alignment: str, seed: int, lanes: int, shuffle: bool, rows: str | None, view: str | int | None = None
) -> dict[str, Any]:
    """Everything but the epoch that decides the order, and which view the batches show where they show one."""
    return {
        "version": ORDER_VERSION,
        "alignment": alignment,
        "seed": seed,
        "lanes": lanes,
        "shuffle": shuffle,
        "rows": rows,
        **({} if view is None else {"view": view}),
    }


def check_state(state: Mapping[str, Any], ours: Mapping[str, Any], total: int, place: str) -> tuple[int, int]:
    """Epoch and position of a state; StoreMismatch where its order is not `ours`, CheckpointError if it is no state."""
    if not isinstance(state, Mapping) or state.keys() != {*ours, "epoch", "position"}:
        keys = ", ".join(sorted({*ours, "epoch", "position"}))
        raise CheckpointError(
            f"{place}: this is not the state of a loader, which has exactly {keys}; take it from state_dict()"
        )
    for key, cure in _CURES.items():
        if key in ours and (state[key] != ours[key] or type(state[key]) is not type(ours[key])):
            raise StoreMismatch(f"{place}: the state's {key} is {state[key]!r}, this loader's is {ours[key]!r}; {cure}")
    epoch, position = state["epoch"], state["position"]
    if type(epoch) is not int or type(position) is not int or epoch < 0 or not 0 <= position <= total:
        raise CheckpointError(
            f"{place}: the state stands at epoch {epoch!r}, position {position!r}, and an epoch has "
            f"positions 0 to {total}; take it from state_dict()"
        )
    return epoch, position
