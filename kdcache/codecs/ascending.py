"""Ascending class ids, repeats allowed, in a fixed number of bits: the Elias-Fano code.

Of each of K ids below C the `low` lowest bits are stored as they are and the rest in unary: id j sets bit
(id >> low) + j of a run of K + ((C - 1) >> low) bits. That is about log2(C / K) + 2 bits an id, within half a bit of
the least that any code can do (Elias 1974; Fano 1971), where plain ids take log2 C: 3.7 instead of 7 bits for 32 of 100
classes, 12 instead of 15 for 32 of 32,768. A repeat costs its low bits and one more, so a multiset needs no counts.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kdcache.codecs.bits import pack, packed_bytes, unpack
from kdcache.errors import StoreDamaged

__all__ = ["ascending_bytes", "check_ascending", "merged", "pack_ascending", "unpack_ascending"]


def ascending_bytes(count: int, classes: int) -> int:
    """Bytes of a row of `count` >= 1 ids below `classes`."""
    low, upper = _split(count, classes)
    return packed_bytes(count, low) + packed_bytes(upper, 1)


def pack_ascending(ids: Tensor, classes: int) -> Tensor:
    """uint8 [..., ascending_bytes] of int64 [..., K], which ascend and lie in [0, classes)."""
    low, upper = _split(ids.shape[-1], classes)
    places = (ids >> low) + torch.arange(ids.shape[-1], device=ids.device)
    marks = torch.zeros(*ids.shape[:-1], upper, dtype=torch.int64, device=ids.device).scatter_(-1, places, 1)
    return torch.cat([pack(ids, low), pack(marks, 1)], -1) if low else pack(marks, 1)


def unpack_ascending(packed: Tensor, count: int, classes: int) -> Tensor:
    """int64 [..., count] of the bytes that `pack_ascending` gave."""
    low, upper = _split(count, classes)
    cut = packed_bytes(count, low)
    marks = unpack(packed[..., cut:].contiguous(), 1, upper).bool()
    # The place of the j-th mark, without a number of results that depends on the data (which would stop a device).
    rank = torch.where(marks, marks.cumsum(-1) - 1, count).clamp_(max=count)
    places = torch.arange(upper, device=packed.device).expand_as(rank)
    found = torch.zeros(*rank.shape[:-1], count + 1, dtype=torch.int64, device=packed.device)
    high = found.scatter_(-1, rank, places)[..., :count] - torch.arange(count, device=packed.device)
    return high << low | unpack(packed[..., :cut].contiguous(), low, count) if low else high


def check_ascending(name: str, packed: Tensor, count: int, classes: int, distinct: bool = False) -> None:
    """StoreDamaged unless every row of column `name` holds `count` ascending (or `distinct`) ids below `classes`."""
    if not packed.numel():
        return
    low, upper = _split(count, classes)
    marks = unpack(packed[..., packed_bytes(count, low) :].contiguous(), 1, upper).sum(-1)
    if (marks != count).any():
        raise StoreDamaged(f"column {name!r} has a row of {int(marks[marks != count][0])} classes, not {count}; "
                           "run `kdcache verify`")  # fmt: skip
    ids = unpack_ascending(packed, count, classes)
    if int(ids.max()) >= classes:
        raise StoreDamaged(f"column {name!r} holds class {int(ids.max())} of {classes}; run `kdcache verify`")
    if (ids.diff(dim=-1) < int(distinct)).any():
        raise StoreDamaged(f"column {name!r} holds classes that do not ascend; run `kdcache verify`")


def merged(ids: Tensor) -> tuple[Tensor, Tensor]:
    """Of ascending int64 [..., K]: the distinct ids and how often each stands there, [..., K]; then 0 and 0."""
    new = torch.ones_like(ids)
    new[..., 1:] = ids[..., 1:] != ids[..., :-1]
    slot = new.cumsum(-1) - 1
    return torch.zeros_like(ids).scatter_(-1, slot, ids), torch.zeros_like(ids).scatter_add_(-1, slot, new * 0 + 1)


def _split(count: int, classes: int) -> tuple[int, int]:
    """Low bits of an id that make the row shortest, the fewest of equals; and the bits of the unary part."""
    return min(
        ((low, count + ((classes - 1) >> low)) for low in range(max(classes - 1, 1).bit_length() + 1)),
        key=lambda split: (count * split[0] + split[1], split[0]),
    )
