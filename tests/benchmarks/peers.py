"""The codecs of other systems for a teacher's soft labels, written from their published descriptions.

TinyViT (Wu et al. 2022), FKD (Shen and Xing 2022), ml-dr (Faghri et al. 2023), Megatron-LM's offline distillation,
plain top-k, and random-sampling KD (Anshumann et al. 2025); DistillKit's is in `peers_distillkit`. Only what stands for
a row's targets is counted: no image seeds, crop boxes, token ids of the text or keys.

Stores that hold probabilities at T = 1 are raised to the power 1/T and normalised, with each system's own rule for the
classes that are not stored. FKD and random sampling fix T while dumping: they get a store of their own for every T, and
the bytes of one.
"""

from __future__ import annotations

import gzip
import math
import pickle
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from kdcache.keyed import keyed_hash

__all__ = [
    "Setting",
    "View",
    "draws_for",
    "megatron",
    "ml_dr",
    "plain_topk",
    "retempered",
    "sampling",
    "smoothed",
    "tinyvit",
]

Stored = Mapping[str, Tensor]


@dataclass(frozen=True)
class View:
    """What stored rows say of p_T.

    log_p    [n, K] of the classes in `indices`, or [n, C] of all
    indices  int64 [n, K]
    rest     [n], log of the mass of all other classes together; None: they have none
    as_one   the system's loss takes the other classes as one; else each has an equal share
    log_z    [n], log of the sum of p_1^(1/T) as the system has it; None where T was fixed while dumping
    """

    log_p: Tensor
    indices: Tensor | None = None
    rest: Tensor | None = None
    as_one: bool = False
    log_z: Tensor | None = None


@dataclass(frozen=True)
class Setting:
    """One setting of one system. `view` gives the targets at T from what `encode` made of float logits [n, C] at T."""

    family: str
    name: str
    size: float  # bytes a row by its description
    encode: Callable[[Tensor, float], Stored]
    view: Callable[[Stored, float, int], View]
    write: Callable[[Stored, Path], None]
    read: Callable[[Path], Stored] | None = None
    decode: Callable[[Stored], object] | None = None  # columns to what a loss takes, before any temperature
    fixes_t: bool = False  # the store serves the T that it was made for, and no other


def retempered(log_p: Tensor, indices: Tensor, temperature: float, classes: int, rule: str) -> View:
    """Kept log-probabilities at T = 1, brought to T; `rule` for the mass m that they leave over.

    "zero": the kept classes are renormalised. "one": m was one class's, m^(1/T), and stays one in the loss. "uniform":
    m was spread evenly over the other classes.
    """
    others = classes - log_p.shape[1]
    left = (1 - log_p.exp().sum(1)).clamp_min(1e-8).log()
    scaled = log_p / temperature
    if rule == "zero" or not others:
        log_z = scaled.logsumexp(1)
        return View(scaled - log_z[:, None], indices, None, False, log_z)
    rest = left / temperature if rule == "one" else (left - math.log(others)) / temperature + math.log(others)
    log_z = torch.logaddexp(scaled.logsumexp(1), rest)
    return View(scaled - log_z[:, None], indices, rest - log_z, rule == "one", log_z)


def records(stored: Stored, path: Path) -> None:
    """Fixed-size rows one after the other, without a header."""
    path.write_bytes(np.concatenate([as_bytes(stored[name]) for name in stored], axis=1).tobytes())


def as_bytes(column: Tensor) -> np.ndarray:
    """uint8 [n, width]."""
    raw = column.contiguous()
    return raw.view(torch.uint8).reshape(len(raw), -1).numpy()


def tinyvit(k: int) -> Setting:
    """k int16 classes and float16 probabilities at T = 1 in rows of 4k bytes; the tail is uniform."""

    def encode(logits: Tensor, temperature: float) -> Stored:
        values, ids = logits.softmax(1).topk(k, 1)
        return {"ids": ids.to(torch.int16), "probs": values.half()}

    def view(stored: Stored, temperature: float, classes: int) -> View:
        log_p = stored["probs"].float().clamp_min(1e-8).log()
        return retempered(log_p, stored["ids"].long(), temperature, classes, "uniform")

    return Setting("TinyViT", f"TinyViT k={k}", 4 * k, encode, view, records)


def smoothed(k: int, classes: int, rule: str = "smoothing") -> Setting:
    """FKD: class ids as floats beside softmax(z / T): float16 where that holds every id exactly, else float32.

    "smoothing" spreads the missing mass evenly, "renorm" rescales the kept to 1.
    """
    dtype = torch.float16 if classes <= 2048 else torch.float32

    def encode(logits: Tensor, temperature: float) -> Stored:
        values, ids = (logits / temperature).softmax(1).topk(k, 1)
        return {"label": torch.stack([ids.to(dtype), values.to(dtype)], 1)}

    def view(stored: Stored, temperature: float, classes: int) -> View:
        ids, probs = stored["label"].float().unbind(1)
        tail = "zero" if rule == "renorm" else "uniform"
        at_one = retempered(probs.clamp_min(1e-8).log(), ids.long(), 1.0, classes, tail)
        return View(at_one.log_p, at_one.indices, at_one.rest)

    return Setting("FKD", f"FKD {rule} k={k}", 2 * k * dtype.itemsize, encode, view, records, fixes_t=True)


def ml_dr(k: int = 10) -> Setting:
    """Pickled lists of Python floats and ids of 400 views, compressed; the tail is uniform. `size` is measured."""

    def encode(logits: Tensor, temperature: float) -> Stored:
        values, ids = logits.softmax(1).topk(k, 1)
        return {"ids": ids, "probs": values.double()}

    def view(stored: Stored, temperature: float, classes: int) -> View:
        log_p = stored["probs"].float().clamp_min(1e-8).log()
        return retempered(log_p, stored["ids"], temperature, classes, "uniform")

    def write(stored: Stored, path: Path) -> None:
        rows = [{"prob": (p, i)} for p, i in zip(stored["probs"].tolist(), stored["ids"].tolist(), strict=True)]
        path.write_bytes(b"".join(gzip.compress(pickle.dumps(rows[i : i + 400])) for i in range(0, len(rows), 400)))

    return Setting("ml-dr", f"ml-dr top-{k}", math.nan, encode, view, write)


def plain_topk(k: int, rule: str = "uniform") -> Setting:
    """float16 log-probabilities and int32 ids: 6k bytes."""

    def encode(logits: Tensor, temperature: float) -> Stored:
        values, ids = logits.log_softmax(1).topk(k, 1)
        return {"ids": ids.int(), "log_p": values.half()}

    def view(stored: Stored, temperature: float, classes: int) -> View:
        return retempered(stored["log_p"].float(), stored["ids"].long(), temperature, classes, rule)

    return Setting("plain top-k", f"top-k {rule} k={k}", 6 * k, encode, view, records)


def megatron(k: int) -> Setting:
    """float16 log-probabilities, the low 16 bits of each id, and the 17th bits packed: 4.125 k; a ghost class."""
    width = 4 * k + -(-k // 8)

    def encode(logits: Tensor, temperature: float) -> Stored:
        values, ids = logits.log_softmax(1).topk(k, 1)
        high = np.packbits((ids >> 16).numpy().astype(np.uint8), axis=1, bitorder="little")
        return {"low": (ids & 0xFFFF).to(torch.uint16), "high": torch.from_numpy(high), "log_p": values.half()}

    def view(stored: Stored, temperature: float, classes: int) -> View:
        high = np.unpackbits(stored["high"].numpy(), axis=1, count=k, bitorder="little")
        ids = stored["low"].long() | torch.from_numpy(high).long() << 16
        return retempered(stored["log_p"].float(), ids, temperature, classes, "one")

    return Setting("Megatron", f"Megatron k={k}", width, encode, view, records)


def sampling(draws: int, unique: float, classes: int) -> Setting:
    """`draws` multinomial draws a row from p_T: ids and counts in 24 bits each, for each distinct one: ragged rows."""
    id_bits = (classes - 1).bit_length()

    def encode(logits: Tensor, temperature: float) -> Stored:
        cumulative = (logits.double() / temperature).softmax(1).cumsum(1)
        numbers = np.arange(len(logits) * draws, dtype=np.int64).reshape(len(logits), draws)
        uniform = torch.from_numpy((keyed_hash(f"peer|{temperature}", numbers) >> np.uint64(11)) * 2.0**-53)
        drawn = torch.searchsorted(cumulative, uniform * cumulative[:, -1:]).clamp_max(classes - 1).sort(1).values
        first = torch.ones_like(drawn, dtype=torch.bool)
        first[:, 1:] = drawn[:, 1:] != drawn[:, :-1]
        counts = torch.zeros_like(drawn).scatter_add_(1, first.cumsum(1) - 1, torch.ones_like(drawn))
        ids = torch.zeros_like(drawn).scatter_(1, first.cumsum(1) - 1, drawn)
        return {"ids": ids, "counts": counts}

    def view(stored: Stored, temperature: float, classes: int) -> View:
        return View((stored["counts"] / draws).log().float(), stored["ids"])

    def write(stored: Stored, path: Path) -> None:
        kept = stored["counts"] > 0
        packed = (stored["ids"] | stored["counts"] << id_bits)[kept].to(torch.int32)
        path.write_bytes(as_bytes(packed[:, None])[:, :3].tobytes())

    return Setting("RS-KD", f"RS-KD N={draws}", 3 * unique, encode, view, write, fixes_t=True)


def draws_for(logits: Tensor, temperature: float, unique: float) -> int:
    """The most draws, up to 1,024, with at most `unique` distinct classes expected, over rows [n, C]."""
    log_not = torch.log1p(-(logits.double() / temperature).softmax(1).clamp_max(1 - 1e-12))
    low, high = 1, 1 << 10
    while low < high:
        middle = (low + high + 1) // 2
        if float(-torch.expm1(middle * log_not).sum(1).mean()) <= unique:
            low = middle
        else:
            high = middle - 1
    return low
