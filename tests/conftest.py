"""What every test may ask for."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
SHARED_DATA = REPOSITORY.parent / "shared" / "data"
if "KDCACHE_DATA" not in os.environ and SHARED_DATA.is_dir():
    os.environ["KDCACHE_DATA"] = str(SHARED_DATA)
os.environ.setdefault("MPLBACKEND", "Agg")


@pytest.fixture(scope="session")
def data_root() -> Path:
    """The folder of real datasets; tests that need it skip where it is absent."""
    root = Path(os.environ.get("KDCACHE_DATA", SHARED_DATA))
    if not (root / "fashion-mnist").is_dir():
        pytest.skip(f"no datasets in {root}: set KDCACHE_DATA, or run `kdcache data get fashion-mnist`")
    return root
