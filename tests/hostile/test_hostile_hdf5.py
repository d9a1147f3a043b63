"""HDF5 shards that link out, name other files, need plugins or lie about their size."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hostile_store import READ, ROWS, columns, forge, growth, header, honest, plan_of, refusal

from kdcache.errors import StoreDamaged, TrustError
from kdcache.store import Plan

HERE = Path(__file__).parent
Alter = Callable[[h5py.File, Path, np.ndarray[Any, Any]], None]


def soft(file: h5py.File, outside: Path, values: np.ndarray[Any, Any]) -> None:
    file["real"] = values
    file["logits"] = h5py.SoftLink("/real")


def soft_loop(file: h5py.File, outside: Path, values: np.ndarray[Any, Any]) -> None:
    file["logits"] = h5py.SoftLink("/logits")


def external_link(file: h5py.File, outside: Path, values: np.ndarray[Any, Any]) -> None:
    with h5py.File(outside, "w") as other:
        other["logits"] = values
    file["logits"] = h5py.ExternalLink(str(outside), "/logits")


def external_storage(file: h5py.File, outside: Path, values: np.ndarray[Any, Any]) -> None:
    outside.write_bytes(values.tobytes())
    file.create_dataset("logits", values.shape, values.dtype, external=[(str(outside), 0, values.nbytes)])


def virtual(file: h5py.File, outside: Path, values: np.ndarray[Any, Any]) -> None:
    with h5py.File(outside, "w") as other:
        other["x"] = values
    layout = h5py.VirtualLayout(values.shape, values.dtype)
    layout[:] = h5py.VirtualSource(str(outside), "x", values.shape)
    file.create_virtual_dataset("logits", layout)


def foreign_filter(file: h5py.File, outside: Path, values: np.ndarray[Any, Any]) -> None:
    properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    properties.set_chunk(values.shape)
    properties.set_filter(32015, h5py.h5z.FLAG_OPTIONAL, ())
    space = h5py.h5s.create_simple(values.shape)
    h5py.h5d.create(file.id, b"logits", h5py.h5t.IEEE_F32LE, space, properties)


def dataset(**keywords: Any) -> Alter:
    def alter(file: h5py.File, outside: Path, values: np.ndarray[Any, Any]) -> None:
        file.create_dataset("logits", **{"data": values, **keywords})

    return alter


def group(file: h5py.File, outside: Path, values: np.ndarray[Any, Any]) -> None:
    file.create_group("logits")["up"] = file["/"]


def cycle(file: h5py.File, outside: Path, values: np.ndarray[Any, Any]) -> None:
    file["logits"] = file["/"]


def extra(file: h5py.File, outside: Path, values: np.ndarray[Any, Any]) -> None:
    file["logits"] = values
    file["evil\x1b[31m\u202e"] = values


def extra_group(file: h5py.File, outside: Path, values: np.ndarray[Any, Any]) -> None:
    file["logits"] = values
    file.create_group("more")["loop"] = file["/"]


def bytes_name(file: h5py.File, outside: Path, values: np.ndarray[Any, Any]) -> None:
    file["logits"] = values
    h5py.h5g.create(file.id, b"\xff\xfe")


def named_type(file: h5py.File, outside: Path, values: np.ndarray[Any, Any]) -> None:
    file["logits"] = np.dtype("<f4")


def huge(file: h5py.File, outside: Path, values: np.ndarray[Any, Any]) -> None:
    file.create_dataset("logits", (1 << 40, 4), "<f4", chunks=(1024, 4), compression="gzip")


def compact(file: h5py.File, outside: Path, values: np.ndarray[Any, Any]) -> None:
    properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    properties.set_layout(h5py.h5d.COMPACT)
    h5py.h5d.create(file.id, b"logits", h5py.h5t.IEEE_F32LE, h5py.h5s.create_simple(values.shape), properties)


TRUST: list[Alter] = [
    soft,
    soft_loop,
    external_link,
    external_storage,
    virtual,
    foreign_filter,
    group,
    cycle,
    named_type,
    compact,
]
DAMAGED = {
    "big endian": dataset(dtype=">f4"),
    "float64": dataset(dtype="<f8"),
    "float16": dataset(dtype="<f2"),
    "transposed": dataset(data=np.zeros((4, ROWS), "<f4")),
    "too few": dataset(data=np.zeros((ROWS - 1, 4), "<f4")),
    "scalar": dataset(data=np.float32(0)),
    "empty": dataset(data=h5py.Empty("<f4")),
    "strings": dataset(data=[b"x"] * ROWS),
    "text": dataset(data="x", dtype=h5py.string_dtype()),
    "compound": dataset(data=np.zeros((ROWS, 4), "<i4,<i4")),
    "references": dataset(data=None, shape=(ROWS, 4), dtype=h5py.ref_dtype),
    "of any length": dataset(data=None, shape=(ROWS, 4), dtype=h5py.vlen_dtype("<f4")),
    "enumeration": dataset(data=np.zeros((ROWS, 4), "<i4"), dtype=h5py.enum_dtype({"a": 0}, "<i4")),
    "chunked": dataset(chunks=(ROWS, 4)),
    "never written": dataset(data=None, shape=(ROWS, 4), dtype="<f4"),
    "huge": huge,
    "an extra dataset": extra,
    "an extra group": extra_group,
    "a name that is no text": bytes_name,
    "missing": lambda file, outside, values: None,
}


def build(path: Path, plan: Plan, alter: Alter, outside: Path, head: Any = None) -> Path:
    with h5py.File(path, "w", libver=("v110", "v110")) as file:
        file["id"] = columns(plan)["id"]
        file["kdcache"] = np.frombuffer(header(plan), np.uint8) if head is None else head
        alter(file, outside, columns(plan)["logits"])
    return path


@pytest.mark.parametrize("alter", TRUST, ids=lambda alter: alter.__name__)
def test_what_leads_elsewhere_is_refused_and_not_followed(tmp_path: Path, alter: Alter) -> None:
    plan, outside = plan_of("hdf5"), tmp_path / "outside"
    forge(tmp_path / "s", plan, build(tmp_path / "shard", plan, alter, outside))
    assert isinstance(refusal(tmp_path / "s"), (TrustError, StoreDamaged))
    trace = tmp_path / "trace"
    command = [sys.executable, "-c", READ, str(HERE), str(tmp_path / "s")]
    strace = ["strace", "-f", "-e", "trace=open,openat,openat2", "-o", str(trace)]
    try:
        done = subprocess.run([*strace, *command], capture_output=True, text=True, timeout=60)
    except FileNotFoundError:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.stdout.split()[0] in ("TrustError", "StoreDamaged"), done.stderr
    assert not trace.exists() or str(outside) not in trace.read_text()


@pytest.mark.parametrize("name", DAMAGED)
def test_what_the_plan_does_not_say_is_refused(tmp_path: Path, name: str) -> None:
    plan = plan_of("hdf5")
    forge(tmp_path / "s", plan, build(tmp_path / "shard", plan, DAMAGED[name], tmp_path / "outside"))
    assert isinstance(refusal(tmp_path / "s"), (StoreDamaged, TrustError))


@pytest.mark.parametrize(
    "head", [np.zeros((2, 2), np.uint8), np.zeros(4), h5py.Empty("u1"), "text", np.uint8(1)], ids=range(5)
)
def test_headers_that_are_no_bytes(tmp_path: Path, head: Any) -> None:
    plan = plan_of("hdf5")
    forge(tmp_path / "s", plan, build(tmp_path / "shard", plan, dataset(), tmp_path / "outside", head))
    assert isinstance(refusal(tmp_path / "s"), StoreDamaged)


def packed(data: bytes, mask: int = 0, chunk: tuple[int, ...] = (ROWS, 4), **filters: Any) -> Alter:
    def alter(file: h5py.File, outside: Path, values: np.ndarray[Any, Any]) -> None:
        made = file.create_dataset("logits", values.shape, "<f4", chunks=chunk, **filters)
        if data:
            made.id.write_direct_chunk((0, 0), data, mask)

    return alter


@pytest.mark.parametrize(
    "alter",
    [
        packed(zlib.compress(bytes(97)), compression=1),
        packed(zlib.compress(bytes(95)), compression=1),
        packed(b"not deflate", compression=1),
        packed(zlib.compress(bytes(96))[:-6], compression=1),
        packed(bytes(96), 1, compression=1),
        packed(b"", compression=1),
        packed(b"", chunk=(ROWS, 2), compression=1),
        packed(b"", chunk=(1024, 1024), compression=1, maxshape=(None, None)),
        packed(bytes(4096), compression=1),
    ],
    ids=range(9),
)
def test_chunks_that_are_not_a_block(tmp_path: Path, alter: Alter) -> None:
    plan = plan_of("hdf5", "deflate")

    def both(file: h5py.File, outside: Path, values: np.ndarray[Any, Any]) -> None:
        alter(file, outside, values)
        del file["id"]
        file.create_dataset("id", data=columns(plan)["id"], chunks=(ROWS,), compression=1)

    forge(tmp_path / "s", plan, build(tmp_path / "shard", plan, both, tmp_path / "outside"))
    assert isinstance(refusal(tmp_path / "s"), StoreDamaged)


def test_a_deflate_bomb_takes_no_memory(tmp_path: Path) -> None:
    plan = plan_of("hdf5", "deflate", rows=200_000)
    squeeze = zlib.compressobj(9)
    bomb = io.BytesIO()
    for _ in range(256):
        bomb.write(squeeze.compress(bytes(1 << 20)))
    bomb.write(squeeze.flush())

    def alter(file: h5py.File, outside: Path, values: np.ndarray[Any, Any]) -> None:
        made = file.create_dataset("logits", values.shape, "<f4", chunks=values.shape, compression=1)
        made.id.write_direct_chunk((0, 0), bomb.getvalue())
        del file["id"]
        file.create_dataset("id", data=columns(plan)["id"], chunks=(plan.rows,), compression=1)

    forge(tmp_path / "s", plan, build(tmp_path / "shard", plan, alter, tmp_path / "outside"))
    kind, grown = growth(tmp_path / "s")
    assert kind == "StoreDamaged"
    assert grown < 64


def test_plugins_are_not_looked_for(tmp_path: Path) -> None:
    plan = plan_of("hdf5")
    forge(tmp_path / "s", plan, honest(plan))
    script = READ + "\nprint(h5py.h5pl.size())"
    done = subprocess.run(
        [sys.executable, "-c", script, HERE, tmp_path / "s"], capture_output=True, text=True,
        env={**os.environ, "HDF5_PLUGIN_PATH": str(tmp_path)}, timeout=60,
    )  # fmt: skip
    assert done.stdout.split()[0] == "NoneType", done.stderr
    assert done.stdout.splitlines()[-1] == "0"
