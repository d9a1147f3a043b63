"""Parquet shards with other columns, lying sizes, and pages that unpack to more than they should."""

from __future__ import annotations

import dataclasses
import io
import json
import struct
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hostile_store import ROWS, columns, forge, growth, header, honest, plan_of, refusal

from kdcache.errors import StoreDamaged, TrustError
from kdcache.store import Plan, StoreReader

BINARY = pa.binary(16)
META = {"dtype": "float32", "shape": "[4]"}
ID = pa.field("id", pa.int64(), nullable=False, metadata={"dtype": "int64", "shape": "[]"})


class Evil(pa.ExtensionType):
    """A type whose mere reading would run code of this process."""

    seen: ClassVar[list[bytes]] = []

    def __init__(self) -> None:
        super().__init__(pa.binary(16), "kdcache.test.evil")

    def __arrow_ext_serialize__(self) -> bytes:
        return b"x"

    @classmethod
    def __arrow_ext_deserialize__(cls, storage: pa.DataType, serialized: bytes) -> Evil:
        cls.seen.append(serialized)
        return cls()


def fixed(values: np.ndarray[Any, Any]) -> pa.Array:
    return pa.array([row.tobytes() for row in values], pa.binary(16))


def write(plan: Plan, logits: pa.Array, field: pa.Field, head: bytes | None = None, **keywords: Any) -> bytes:
    """A shard whose column `logits` is of another kind."""
    sink = io.BytesIO()
    schema = pa.schema([ID, field], metadata={"kdcache": header(plan) if head is None else head})
    table = pa.Table.from_arrays([pa.array(columns(plan)["id"]), logits], schema=schema)
    keywords = {"use_dictionary": False, "write_statistics": False, "compression": "NONE", **keywords}
    pq.write_table(table, sink, **keywords)
    return sink.getvalue()


def field(kind: pa.DataType = BINARY, nullable: bool = False, **metadata: str) -> pa.Field:
    return pa.field("logits", kind, nullable=nullable, metadata={**META, **metadata})


def shards() -> dict[str, bytes]:
    plan = plan_of()
    values = columns(plan)["logits"]
    good = fixed(values)
    floats = pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), 4)
    nulls = pa.array([None, *good.to_pylist()[1:]], pa.binary(16))
    extension = pa.ExtensionArray.from_storage(Evil(), good)
    variable = pa.array(good.to_pylist(), pa.binary())
    return {
        "nullable": write(plan, good, field(nullable=True)),
        "nulls": write(plan, nulls, field(nullable=True)),
        "list": write(plan, floats, field(floats.type)),
        "extension": write(plan, extension, field(extension.type)),
        "variable width": write(plan, variable, field(pa.binary())),
        "dictionary type": write(plan, variable.dictionary_encode(), field(pa.dictionary(pa.int32(), pa.binary()))),
        "dictionary pages": write(plan, good, field(), use_dictionary=True),
        "wrong row groups": write(plan, good, field(), row_group_size=2),
        "other metadata": write(plan, good, field(shape="[2, 2]")),
        "more metadata": write(plan, good, field(more="x")),
        "no arrow schema": write(plan, good, field(), store_schema=False),
        "packed in a raw store": write(plan, good, field(), compression="ZSTD"),
        "split encoding": write(plan, good, field(), column_encoding={"logits": "BYTE_STREAM_SPLIT"}),
        "empty header": write(plan, good, field(), b""),
        "control characters": write(
            plan, good, pa.field("e\x1b[31m\u202e\n", pa.binary(16), nullable=False, metadata=META)
        ),
    }


SHARDS = shards()


@pytest.mark.parametrize("name", SHARDS)
def test_what_the_plan_does_not_say_is_refused(tmp_path: Path, name: str) -> None:
    pa.register_extension_type(Evil())
    try:
        forge(tmp_path / "s", plan_of(), SHARDS[name])
        assert isinstance(refusal(tmp_path / "s"), (StoreDamaged, TrustError))
    finally:
        pa.unregister_extension_type("kdcache.test.evil")


def test_statistics_harm_nothing(tmp_path: Path) -> None:
    plan = plan_of()
    forge(tmp_path / "s", plan, write(plan, fixed(columns(plan)["logits"]), field(), write_statistics=True))
    assert refusal(tmp_path / "s") is None


def varint(number: int) -> bytes:
    """Thrift's compact signed integer."""
    number = (number << 1) ^ (number >> 63)
    found = bytearray()
    while number > 0x7F:
        found.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*found, number & 0x7F])


def parts(shard: bytes) -> tuple[bytes, bytes]:
    """The pages, and the footer."""
    length = struct.unpack("<I", shard[-8:-4])[0]
    return shard[: -8 - length], shard[-8 - length : -8]


def join(pages: bytes, footer: bytes) -> bytes:
    return pages + footer + struct.pack("<I4s", len(footer), b"PAR1")


@pytest.mark.parametrize("number", ["data_page_offset", "total_compressed_size", "num_values"])
@pytest.mark.parametrize("new", [0, 1, -1, 5, 100, 2**20, 2**31 - 1, 2**31, 2**32, 2**62, -(2**62)])
def test_lying_sizes(tmp_path: Path, number: str, new: int) -> None:
    for container_compression in ("none", "zstd"):
        plan = plan_of(compression=container_compression, rows=70)
        shard = honest(plan)
        chunk = pq.ParquetFile(io.BytesIO(shard)).metadata.row_group(0).column(1)
        right = getattr(chunk, number)
        pages, footer = parts(shard)
        at = footer.rindex((b"\x26" if number == "data_page_offset" else b"\x16") + varint(right))
        changed = footer[: at + 1] + varint(new) + footer[at + 1 + len(varint(right)) :]
        forge(tmp_path / "s", plan, join(pages, changed))
        assert refusal(tmp_path / "s") is not None


@pytest.mark.parametrize(
    "data",
    [
        b"", b"PAR1", b"PAR1" * 3, b"PAR1" + struct.pack("<I4s", 2**32 - 1, b"PAR1"),
        b"PAR1" + struct.pack("<I4s", 0, b"PAR1"),
        bytes(100) + struct.pack("<I4s", 93, b"PAR1"), b"PAR1" + bytes(100) + struct.pack("<I4s", 100,
        b"PARE"), bytes(1000),
        join(b"PAR1", b"\x15\x02\x19\xfc\xff\xff\xff\xff\x07" + bytes(50)),
        join(b"PAR1", b"\x15\x02\x18\xff\xff\xff\xff\x07" + bytes(50)),
        join(b"PAR1", b"\x1c" * 100_000),
        join(b"PAR1", b"\x19\x1c" * 100_000),
    ],
    ids=range(12),
)  # fmt: skip
def test_footers_that_are_none(tmp_path: Path, data: bytes) -> None:
    forge(tmp_path / "s", plan_of(), data or b"x")
    assert isinstance(refusal(tmp_path / "s"), StoreDamaged)


def test_a_footer_of_many_row_groups_takes_little_memory(tmp_path: Path) -> None:
    """60 MiB that declare a million row groups of nothing."""
    groups = b"\x19\x0c\x16\x00\x16\x00\x00" * 1_000_000
    footer = b"\x15\x02\x19\x1c\x48\x06schema\x15\x00\x00\x16\x00\x19\xfc" + b"\xc0\x84\x3d" + groups + b"\x00"
    forge(tmp_path / "s", plan_of(), join(b"PAR1", footer))
    kind, grown = growth(tmp_path / "s")
    assert kind == "StoreDamaged"
    assert grown < 128


def bombed(plan: Plan, declared: int, packed: bytes) -> bytes:
    """The honest shard with another page as its last chunk; the footer's own sizes stay plausible."""
    shard = honest(plan)
    pages, footer = parts(shard)
    chunk = pq.ParquetFile(io.BytesIO(shard)).metadata.row_group(0).column(1)
    page = pages[chunk.data_page_offset :]
    size = plan.rows * 16
    head = b"\x15\x00\x15" + varint(size) + b"\x15"
    assert page.startswith(head)
    rest = page[page.index(b"\x2c") : len(page) - (len(page) - page.index(b"\x28\xb5\x2f\xfd"))]
    page = b"\x15\x00\x15" + varint(declared) + b"\x15" + varint(len(packed)) + rest + packed
    at = footer.rindex(b"\x16" + varint(chunk.total_compressed_size))
    after = at + 1 + len(varint(chunk.total_compressed_size))
    return join(pages[: chunk.data_page_offset] + page, footer[: at + 1] + varint(len(page)) + footer[after:])


@pytest.mark.parametrize("honest_size", [True, False])
def test_a_zstd_bomb_takes_no_memory(tmp_path: Path, honest_size: bool) -> None:
    plan = plan_of(compression="zstd", rows=5000)
    size = 256 << 20
    packed = pa.compress(bytes(size), codec="zstd", asbytes=True)
    forge(tmp_path / "s", plan, bombed(plan, 80_000 if honest_size else size, packed))
    with StoreReader(tmp_path / "s") as store:
        assert len(store.read_column("id")) == 5000  # the footer is fine, only the page is not
    kind, grown = growth(tmp_path / "s")
    assert kind == "StoreDamaged"
    assert grown < 64


def test_the_bomb_would_go_off_in_plain_pyarrow(tmp_path: Path) -> None:
    """So that the test above tests something: the same file, with the right values, is read by both."""
    plan = plan_of(compression="zstd", rows=5000)
    right = pa.compress(columns(plan)["logits"].tobytes(), codec="zstd", asbytes=True)
    shard = forge(tmp_path / "s", plan, bombed(plan, 80_000, right))
    assert pq.read_table(shard)["logits"][1].as_py() == np.arange(1, 5, dtype=np.float32).tobytes()
    assert refusal(tmp_path / "s") is None


def test_rows_that_are_not_there(tmp_path: Path) -> None:
    plan = plan_of()
    wrong = dataclasses.replace(plan, rows=ROWS + 1, unit_rows=ROWS + 1, block_rows=ROWS + 1)
    value = json.loads(header(wrong))
    assert value["rows"] == ROWS + 1
    forge(tmp_path / "s", wrong, honest(plan))
    assert isinstance(refusal(tmp_path / "s"), StoreDamaged)
