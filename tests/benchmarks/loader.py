"""How fast the loader is, next to what the same tensors allow in memory. Run it alone on an idle machine:

    python tests/benchmarks/loader.py [--json FILE] [--repeats 7] [--threads 1]

Case c: 50,000 rows, input uint8 [3, 32, 32], dense float16 logits [100]. Case f: 60,000 rows, input uint8 [28, 28],
topk k = 4 of 10 classes. Batches of 256. Medians over interleaved repeats of one epoch each; GB/s counts stored bytes.

    loader, warm      epochs after the first: every block is in the pool
    loader, first     a new loader: pool allocation, reading, verification, decoding (the files are in the page cache)
    loader, small     a pool of half the store, so half of each epoch is read again
    index_select      for each batch of the same order, torch.index_select on each stored column in memory, not decoded
    memcpy            the columns copied once, front to back, into memory that is there already
    DataLoader        torch's TensorDataset and DataLoader over the same columns, shuffled, no workers
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from kdcache.arrays import Array
from kdcache.codecs import CODECS
from kdcache.loader import StreamingLoader
from kdcache.store import Plan, StoredField, StoreReader, StoreWriter, open_store, plain_field

BATCH = 256
CASES: dict[str, tuple[int, tuple[int, ...], int, str, dict[str, object]]] = {
    "c": (50_000, (3, 32, 32), 100, "dense", {"dtype": "float16"}),
    "f": (60_000, (28, 28), 10, "topk", {"k": 4}),
}


def write(path: Path, case: str, container: str) -> StoreReader:
    """A store of random inputs and logits."""
    rows, shape, classes, codec, configuration = CASES[case]
    module, array = CODECS[codec], Array("float32", (classes,))
    chosen = module.configure(configuration, array)
    field = StoredField("logits", array, codec, chosen, module.columns(array, chosen))
    plain = (
        plain_field("id", Array("int64")),
        plain_field("label", Array("int64")),
        plain_field("input", Array("uint8", shape)),
    )
    source = {"name": "noise", "fingerprint": "0" * 64, "classes": classes, "class_names": []}
    plan = Plan(
        rows,
        source,
        {"kind": "source", "seed": 0},
        8192,
        2048,
        256,
        {"format": container, "compression": "none"},
        (*plain, field),
    )
    draw = np.random.default_rng(0)
    logits = torch.from_numpy(draw.standard_normal((rows, classes), np.float32) * 3)
    columns: dict[str, NDArray[np.generic]] = {
        "id": np.arange(rows),
        "label": draw.integers(0, classes, rows),
        "input": draw.integers(0, 256, (rows, *shape), np.uint8),
        **{field.column(s): values.contiguous().numpy() for s, values in module.encode(logits, chosen, {}).items()},
    }
    writer = StoreWriter(path, plan)
    for unit in range(plan.units):
        first, last = plan.unit_range(unit)
        writer.write(unit, {name: values[first:last] for name, values in columns.items()})
    writer.finish()
    return open_store(path)


def drain(batches: Iterable[object]) -> None:
    """Take every batch and do nothing with it."""
    for _ in batches:
        pass


def seconds(action: Callable[[], None]) -> float:
    """Wall time of one call."""
    began = time.perf_counter()
    action()
    return time.perf_counter() - began


def contenders(store: StoreReader) -> dict[str, Callable[[], None]]:
    """One epoch of each."""
    tensors = [torch.from_numpy(store.read_column(name)) for name in store.columns]
    bytes_in_all = sum(values.nbytes for values in tensors)
    warm = StreamingLoader(store, BATCH)
    drain(warm)
    small = StreamingLoader(store, BATCH, lanes=8, memory_budget=bytes_in_all // 2)
    order = torch.split(torch.from_numpy(warm.order(1)[:]), BATCH)
    copies = [torch.empty_like(values).fill_(0) for values in tensors]

    def first() -> None:
        with open_store(store.path) as fresh:
            drain(StreamingLoader(fresh, BATCH))

    def select() -> None:
        for places in order:
            _ = [values.index_select(0, places) for values in tensors]

    def copy() -> None:
        for to, values in zip(copies, tensors, strict=True):
            to.copy_(values)

    everyday: DataLoader[tuple[Tensor, ...]] = DataLoader(TensorDataset(*tensors), BATCH, shuffle=True)
    return {
        "loader, warm": lambda: drain(warm),
        "loader, first": first,
        "loader, small": lambda: drain(small),
        "index_select": select,
        "memcpy": copy,
        "DataLoader": lambda: drain(everyday),
    }


def measure(store: StoreReader, repeats: int) -> dict[str, float]:
    """Median seconds per epoch of each contender, taken in turn."""
    runs = contenders(store)
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            times[name].append(seconds(run))
    return {name: statistics.median(values) for name, values in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description="Benchmark of the loader.")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    results = []
    print(
        f"{'case':5}{'format':9}{'':15}{'M samples/s':>12}{'GB/s':>8}{'ratio':>8}   (ratio to index_select; "
        f"{options.repeats} repeats, {options.threads} torch threads)"
    )
    for case, (rows, *_) in CASES.items():
        for container in ("parquet", "hdf5"):
            with tempfile.TemporaryDirectory() as folder, write(Path(folder) / "store", case, container) as store:
                width = sum(array.width for array in store.columns.values())
                medians = measure(store, options.repeats)
            for name, median in medians.items():
                rate, ratio = rows / median, medians["index_select"] / median
                found = {"samples_per_s": rate, "gb_per_s": rate * width / 1e9, "ratio": ratio}
                results.append({"case": case, "format": container, "name": name, **found})
                print(f"{case:5}{container:9}{name:15}{rate / 1e6:12.2f}{rate * width / 1e9:8.2f}{ratio:8.2f}")
    if options.json:
        versions = {"torch": torch.__version__, "numpy": np.__version__, "python": sys.version.split()[0]}
        report = {**versions, "threads": options.threads, "repeats": options.repeats, "results": results}
        options.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
