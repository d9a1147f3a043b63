"""DistillKit's distribution quantisation (Goddard and Atkins, arcee-ai, 2025), written from its description.

The k largest log-probabilities in descending order: the first `exact` as bfloat16, the others as float32 coefficients
of a least-squares fit over t^0, t^1, ... and sqrt(t), t = 0 ... k - exact - 1, and all k ids in ceil(log2 C) bits each,
most significant bit first. Bytes a row: 2 exact + 4 terms + ceil(k bits / 8).

Its store is Parquet with one row a sequence and two columns of list<list<uint8>>, snappy; whoever trains reads them as
Arrow arrays or, without a `datasets` format set, as Python lists.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from peers import Setting, Stored, View, as_bytes, retempered
from torch import Tensor

__all__ = ["BUDGET", "RECOMMENDED", "distillkit", "read_arrow", "read_lists", "write_lists"]

RECOMMENDED: tuple[int, Sequence[int | str]] = (16, (0, 1, 2, 3, 4, "sqrt"))
BUDGET: tuple[int, Sequence[int | str]] = (1, (0, 1, "sqrt"))
SEQUENCE = 512
Bytes = NDArray[np.uint8]


def distillkit(k: int, exact: int, terms: Sequence[int | str], classes: int, rule: str = "zero") -> Setting:
    """`rule` for missing probability: "zero" (its default), or "one": symmetric_uniform, a ghost class."""
    bits = max((classes - 1).bit_length(), 1)
    size = 2 * exact + 4 * len(terms) + -(-k * bits // 8)
    phi = basis(k - exact, terms)
    solve = torch.linalg.pinv(phi, rtol=0, atol=1e-5)

    def encode(logits: Tensor, temperature: float) -> Stored:
        values, ids = logits.log_softmax(1).topk(k, 1)
        fit = (values[:, exact:].double() @ solve.T).float()
        head = values[:, :exact].bfloat16()
        packed = torch.from_numpy(np.concatenate([as_bytes(head), as_bytes(fit)], 1))
        return {"compressed_logprobs": packed, "bytepacked_indices": torch.from_numpy(pack(ids.numpy(), bits))}

    def decode(stored: Stored) -> tuple[Tensor, Tensor]:
        return decoded(stored, k, exact, phi, bits)

    def view(stored: Stored, temperature: float, classes: int) -> View:
        log_p, ids = decode(stored)
        return retempered(log_p, ids, temperature, classes, rule)

    kind = "recommended" if exact == 16 else "budget"
    name = f"DistillKit {kind} {'ghost ' if rule == 'one' else ''}k={k}"
    return Setting("DistillKit", name, size, encode, view, write_lists, read_arrow, decode)


def basis(count: int, terms: Sequence[int | str]) -> Tensor:
    """phi [count, terms] float64."""
    t = torch.arange(count, dtype=torch.float64)
    return torch.stack([t.sqrt() if term == "sqrt" else t ** int(term) for term in terms], 1)


def decoded(stored: Stored, k: int, exact: int, phi: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Log-probabilities float32 [n, k] and ids int64 [n, k]."""
    packed = stored["compressed_logprobs"]
    head = packed[:, : 2 * exact].contiguous().view(torch.bfloat16).float()
    fit = packed[:, 2 * exact :].contiguous().view(torch.float32)
    ids = unpack(stored["bytepacked_indices"].numpy(), bits, k)
    return torch.cat([head, fit @ phi.T.float()], 1), torch.from_numpy(ids)


def pack(ids: NDArray[np.int64], bits: int) -> Bytes:
    """Ids [n, k] as a big-endian stream of `bits` each."""
    places = np.arange(bits - 1, -1, -1)
    return np.packbits((ids[:, :, None] >> places & 1).astype(np.uint8).reshape(len(ids), -1), axis=1)


def unpack(packed: Bytes, bits: int, k: int) -> NDArray[np.int64]:
    """The ids again. Each lies within four bytes."""
    start = np.arange(k) * bits
    wide = np.pad(packed, ((0, 0), (0, 4))).astype(np.int64)
    byte = start >> 3
    word = wide[:, byte] << 24 | wide[:, byte + 1] << 16 | wide[:, byte + 2] << 8 | wide[:, byte + 3]
    return word >> 32 - bits - (start & 7) & (1 << bits) - 1


def write_lists(stored: Stored, path: Path) -> None:
    """Its Parquet file: a sequence a row."""
    pq.write_table(pa.table({name: _nested(column.numpy()) for name, column in stored.items()}), path)


def _nested(rows: Bytes) -> pa.ListArray:
    n, width = rows.shape
    inner = pa.ListArray.from_arrays(
        pa.array(np.arange(0, n * width + 1, width, dtype=np.int32)), pa.array(rows.ravel())
    )
    return pa.ListArray.from_arrays(pa.array(np.append(np.arange(0, n, SEQUENCE), n).astype(np.int32)), inner)


def read_arrow(path: Path) -> dict[str, Tensor]:
    """The columns through Arrow's nested lists, without a Python object for each."""
    table = pq.read_table(path)
    found = {}
    for name in table.column_names:
        inner = table[name].combine_chunks().flatten()
        rows = inner.flatten().to_numpy(zero_copy_only=False).reshape(len(inner), -1)
        found[name] = torch.from_numpy(rows.copy())
    return found


def read_lists(path: Path) -> dict[str, Tensor]:
    """The columns through Python lists, as unformatted `datasets` rows come."""
    rows = pq.read_table(path).to_pylist()
    return {name: torch.from_numpy(np.concatenate([np.array(row[name], np.uint8) for row in rows])) for name in rows[0]}
