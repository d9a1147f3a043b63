"""FORMAT.md says what the code does."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np

import kdcache.store
from kdcache.arrays import DTYPES
from kdcache.keyed import keyed_hash
from kdcache.store import open_store
from kdcache.store.plan import COMPRESSIONS

TEXT = (Path(kdcache.store.__file__).parent / "FORMAT.md").read_text()
GOLDEN = Path(__file__).parents[1] / "golden"


def test_the_lines_of_plain_pyarrow_read_a_shard() -> None:
    (block,) = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    shard = min((GOLDEN / "parquet" / "data").iterdir())
    done = subprocess.run([sys.executable, "-W", "error", "-c", block, shard], capture_output=True, text=True)
    assert done.stderr == ""
    with open_store(GOLDEN / "parquet") as store:
        expected = [
            f"{name} {array.dtype} {list(array.shape)} {store.read_column(name, 0, 1)[0].tolist()}"
            for name, array in store.columns.items()
        ]
    assert done.stdout.splitlines() == expected


def test_every_key_dtype_and_compression_is_named() -> None:
    with open_store(GOLDEN / "parquet") as store:
        keys = {*store.plan.to_json(), *store.plan.source, *store.manifest.units[0].to_json()}
    for word in (*keys, *DTYPES, *COMPRESSIONS, *sum(COMPRESSIONS.values(), ())):
        assert re.search(rf"\b{word}\b", TEXT), word


def test_vectors_of_the_text() -> None:
    hashes = [f"{x:#018x}" for x in keyed_hash("kdcache-plan-1|0", np.arange(3)).tolist()]
    assert all(value in TEXT for value in hashes)
    bits, codes, place = [7, 7, 6, 5, 5, 5, 5, 4, 4], [], 0
    word = int.from_bytes(bytes([71, 67, 19, 227, 123, 135]), "little")
    for width in bits:
        codes.append(word >> place & (1 << width) - 1)
        place += width
    assert " ".join(map(str, codes)) in TEXT
    with open_store(GOLDEN / "hdf5") as store:
        assert store.table("packed")["bits"].tolist() == bits
        assert store.read_column("packed", 0, 1).tolist() == [[71, 67, 19, 227, 123, 135]]
