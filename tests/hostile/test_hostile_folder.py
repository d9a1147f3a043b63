"""Links, pipes and devices in a store, and tables that are none."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import struct
from pathlib import Path

import pytest
from hostile_store import forge, honest, plan_of, refusal

from kdcache.errors import KdcacheError, TrustError
from kdcache.store import verify


@pytest.mark.parametrize("container", ["parquet", "hdf5"])
@pytest.mark.parametrize("kind", ["link", "pipe", "device", "folder", "dangling"])
@pytest.mark.parametrize("which", ["shard", "plan.json", "manifest.json", "units/000000.json"])
@pytest.mark.timeout(20)
def test_only_plain_files(tmp_path: Path, container: str, kind: str, which: str) -> None:
    plan = plan_of(container)
    shard = forge(tmp_path / "s", plan, honest(plan))
    file = shard if which == "shard" else tmp_path / "s" / which
    kept = tmp_path / "outside"
    os.rename(file, kept)
    if kind == "link":
        file.symlink_to(kept)
    elif kind == "pipe":
        os.mkfifo(file)
    elif kind == "device":
        file.symlink_to("/dev/zero")
    elif kind == "folder":
        file.mkdir()
    else:
        file.symlink_to(tmp_path / "nothing")
    with pytest.raises(KdcacheError) as caught:
        verify(tmp_path / "s")
    assert caught.value.exit_code in (65, 77)
    if which != "units/000000.json":
        assert refusal(tmp_path / "s") is not None


def safetensors_bytes(header: bytes, data: bytes = b"", length: int | None = None) -> bytes:
    return struct.pack("<Q", len(header) if length is None else length) + header + data


TENSOR = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x80\x04\x95pickle",
        safetensors_bytes(b"{}", length=2**63),
        safetensors_bytes(b"{}", length=100),
        safetensors_bytes(b"not json"),
        safetensors_bytes(b"[" * 100_000),
        safetensors_bytes(json.dumps({"a": {**TENSOR, "data_offsets": [0, 2**40]}}).encode(), bytes(8)),
        safetensors_bytes(json.dumps({"a": {**TENSOR, "shape": [2**40, 2**40]}}).encode(), bytes(8)),
        safetensors_bytes(json.dumps({"a": {**TENSOR, "dtype": "F8_E8M0", "data_offsets": [0, 2]}}).encode(), bytes(2)),
        safetensors_bytes(json.dumps({"a": {**TENSOR, "dtype": "object"}}).encode(), bytes(8)),
        safetensors_bytes(json.dumps({"a": TENSOR, "b": TENSOR}).encode(), bytes(8)),
    ],
    ids=range(11),
)
def test_tables(tmp_path: Path, data: bytes) -> None:
    digest = hashlib.sha256(data).hexdigest()
    plan = dataclasses.replace(plan_of(), tables={"logits": digest})
    forge(tmp_path / "s", plan, honest(plan))
    assert "missing" in str(refusal(tmp_path / "s"))
    (tmp_path / "s" / "tables").mkdir()
    file = tmp_path / "s" / "tables" / f"logits-{digest[:16]}.safetensors"
    file.write_bytes(data)
    error = refusal(tmp_path / "s")
    assert error is not None
    assert "is no safetensors file" in str(error)
    os.truncate(file, 1 << 40)
    assert isinstance(refusal(tmp_path / "s"), TrustError)
    file.unlink()
    file.symlink_to("/etc/passwd")
    assert isinstance(refusal(tmp_path / "s"), TrustError)
