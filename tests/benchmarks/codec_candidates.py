"""What is compared: kdcache's codecs in the settings that a user can write, and the peers' at every budget."""

from __future__ import annotations

import bisect
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch
from codec_measures import TEMPERATURES, view_of
from peers import Setting, Stored, View, draws_for, megatron, ml_dr, plain_topk, sampling, smoothed, tinyvit
from peers_distillkit import BUDGET, RECOMMENDED, distillkit
from torch import Tensor

from kdcache.arrays import Array
from kdcache.codecs import CODECS, Targets
from kdcache.errors import UsageError
from kdcache.store import parquet

__all__ = ["BUDGETS", "kdcache_settings", "peer_settings", "unbiased_settings"]

BUDGETS = (12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)
_BLOCK = 8192


def kdcache_settings(pilot: Tensor) -> Iterator[Setting]:
    """Every candidate of at most the largest budget, fitted on pilot logits [P, C]."""
    array = Array("float32", (pilot.shape[1],))
    for codec, given in configurations(array):
        if width_of(codec, given, array) <= BUDGETS[-1]:
            yield kdcache_setting(codec, given, pilot)


def configurations(array: Array) -> Iterator[tuple[str, dict[str, Any]]]:
    """The [fields.logits] tables that are tried, as a user writes them."""
    yield "dense", {"dtype": "float16"}
    yield "dense", {"dtype": "float32"}
    yield "quant", {"bits": 8}
    yield "quant", {"bits": 4}
    for budget in BUDGETS:
        yield "lowrank", {"bytes": budget}
        for dtype in ("uint8", "float16", "float32"):
            for temperatures in ([], [2.0], [2.0, 4.0]):
                given = {"dtype": dtype, "temperatures": temperatures}
                sizes = range(1, min(array.shape[0], budget) + 1)
                k = bisect.bisect(sizes, budget, key=lambda k, given=given: width_of("topk", {"k": k, **given}, array))
                yield "topk", {"k": max(k, 1), **given}


def width_of(codec: str, given: Mapping[str, Any], array: Array) -> float:
    """Bytes a row; infinite where the codec is not for so many classes, or not in this version."""
    try:
        configuration = CODECS[codec].configure(given, array)
    except (KeyError, UsageError):
        return math.inf
    return sum(column.width for column in CODECS[codec].columns(array, configuration).values())


def unbiased_settings(pilot: Tensor) -> Iterator[Setting]:
    """kdcache's own estimates that no KL can judge: rows of about 36 and 128 bytes, drawn for each T."""
    array = Array("float32", (pilot.shape[1],))
    for codec, key in (("sampled", "draws"), ("threshold", "k")):
        for budget in (36, 128):
            sizes = range(1, min(array.shape[0], 4 * budget) + 1)
            count = bisect.bisect(sizes, budget, key=lambda n, c=codec, key=key: width_of(c, {key: n}, array))
            if count:
                yield kdcache_setting(codec, {key: count}, pilot)


def kdcache_setting(codec: str, given: Mapping[str, Any], pilot: Tensor) -> Setting:
    """One codec as its own module does it: columns in a Parquet shard of kdcache's layout."""
    module, array = CODECS[codec], Array("float32", (pilot.shape[1],))
    fixes_t = codec in ("sampled", "threshold")
    configurations = {
        t: module.configure({**given, "temperature": t} if fixes_t else given, array) for t in TEMPERATURES
    }
    columns = module.columns(array, configurations[1.0])
    fitted = module.fit(pilot, configurations[1.0]) if module.NEEDS_PILOT else {}
    tables = {name: torch.from_numpy(values) for name, values in fitted.items()}

    def encode(logits: Tensor, temperature: float) -> Stored:
        return module.encode(logits, configurations[temperature], tables, torch.arange(len(logits)))

    def decode(stored: Stored) -> Targets:
        return module.decode(stored, array, configurations[1.0], tables)

    def view(stored: Stored, temperature: float, classes: int) -> View:
        return view_of(module.decode(stored, array, configurations[temperature], tables), temperature)

    schema = {f"logits.{suffix}" if suffix else "logits": column for suffix, column in sorted(columns.items())}

    def write(stored: Stored, path: Path) -> None:
        values = {f"logits.{suffix}" if suffix else "logits": stored[suffix].contiguous().numpy() for suffix in stored}
        path.write_bytes(parquet.encode(values, schema, _BLOCK, "none", b"{}\n"))

    def read(path: Path) -> Stored:
        rows = pq.read_metadata(path).num_rows
        shard = parquet.Shard(path, schema, rows, _BLOCK, "none")
        found = {}
        with path.open("rb") as file:
            for name, column in schema.items():
                whole = torch.empty(rows, column.width, dtype=torch.uint8)
                for block, part in enumerate(whole.split(_BLOCK)):
                    extent = shard.extent(name, block)
                    assert extent is not None, "an uncompressed block lies raw in the file"
                    file.seek(extent[0])
                    file.readinto(memoryview(part.numpy()).cast("B"))
                found[name.removeprefix("logits").removeprefix(".")] = torch.from_numpy(
                    whole.numpy().view(column.numpy).reshape(rows, *column.shape)
                )
        shard.close()
        return found

    name = " ".join([codec, *(f"{key}={brief(value)}" for key, value in given.items())])
    size = sum(column.width for column in columns.values())
    return Setting(codec, name, size, encode, view, write, read, decode, fixes_t)


def brief(value: object) -> str:
    """A value as part of a name."""
    return ",".join(f"{number:g}" for number in value) or "1" if isinstance(value, list) else str(value)


def peer_settings(pilot: Tensor) -> Iterator[Setting]:
    """Each system as published, and in the largest setting that fits each budget."""
    classes = pilot.shape[1]
    bits = (classes - 1).bit_length()
    found: dict[str, Setting] = {}

    def add(setting: Setting) -> None:
        found.setdefault(setting.name, setting)

    for k in (5, 10):
        add(ml_dr(k))
        add(smoothed(k, classes))
    for k in (10, 100):
        if k < classes:
            add(tinyvit(k))
    add(megatron(min(128, classes - 1)))
    for rule in ("zero", "one"):
        add(distillkit(min(128, classes), *RECOMMENDED, classes, rule))
        add(distillkit(min(50, classes), *BUDGET, classes, rule))
    add(sampling_of(pilot, 12))
    for budget in BUDGETS:
        for each, make in ((4, tinyvit), (6, plain_topk), (4.125, megatron)):
            if (k := min(int(budget / each), classes - 1)) >= 1:
                add(make(k))
        if (k := min(budget // (4 if classes <= 2048 else 8), classes - 1)) >= 1:
            add(smoothed(k, classes))
            add(smoothed(k, classes, "renorm"))
        for exact, terms in (BUDGET, RECOMMENDED):
            k = min((budget - 2 * exact - 4 * len(terms)) * 8 // bits, classes)
            if k >= exact + len(terms):
                for rule in ("zero", "one"):
                    add(distillkit(k, exact, terms, classes, rule))
        if budget in (12, 24, 48, 96):  # beyond, thousands of draws a row
            add(sampling_of(pilot, budget / 3))
    yield from found.values()


def sampling_of(pilot: Tensor, unique: float) -> Setting:
    """Random sampling with at most so many distinct ids a row on average, at each T."""
    classes = pilot.shape[1]
    some = pilot[:64]
    at = {t: sampling(draws_for(some, t, min(unique, classes - 1)), unique, classes) for t in (1.0, 2.0, 4.0)}

    def encode(logits: Tensor, temperature: float) -> Stored:
        return at[temperature].encode(logits, temperature)

    def view(stored: Stored, temperature: float, classes: int) -> View:
        return at[temperature].view(stored, temperature, classes)

    draws = at[1.0].name.removeprefix("RS-KD N=")
    return Setting(
        "RS-KD", f"RS-KD {math.floor(unique)} ids, N={draws}", 3 * unique, encode, view, at[1.0].write, fixes_t=True
    )
