"""A small recipe, real in everything but its size, and what of a run must not change."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

RECIPE = """
name = "small"
[source]
kind = "digits"
rows = 200
labelled = 80
[eval_source]
kind = "digits"
split = "test"
rows = 100
[store]
unit_rows = 64
block_rows = 16
[teacher]
model = "zoo:mlp"
args = { hidden = [12] }
fit = { steps = 20, batch_size = 32 }
[fields.logits]
codec = "topk"
k = 3
[student]
model = "zoo:mlp"
args = { hidden = [8] }
[[objective]]
name = "kd"
temperature = 2.0
[train]
steps = 20
batch_size = 32
seeds = [0, 1]
"""

# Writes down, for every process of a run, which rooms it imports.
SPY = """
import os, sys

class Spy:
    def find_spec(self, name, path=None, target=None):
        if name.startswith("kdcache.") or name in ("timm", "transformers"):
            line = f"{os.getpid()} {name}\\n".encode()
            descriptor = os.open(os.environ["KDCACHE_SPY"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.write(descriptor, line)
            os.close(descriptor)

if "KDCACHE_SPY" in os.environ:
    sys.meta_path.insert(0, Spy())
"""


def write(folder: Path, *changes: tuple[str, str], more: str = "", name: str = "small") -> Path:
    """`RECIPE` with some of its text replaced and some added."""
    text = RECIPE
    for old, new in changes:
        assert old in text, old
        text = text.replace(old, new)
    path = folder / f"{name}.toml"
    path.write_text(text + more)
    return path


def results(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "results.json").read_text())
    return found


def lasting(value: Any) -> Any:
    """A run's results without what depends on the clock or the folder."""
    if isinstance(value, dict):
        return {key: lasting(item) for key, item in value.items()
                if key not in ("seconds", "throughput", "command", "environment", "samples_per_second")}  # fmt: skip
    return [lasting(item) for item in value] if isinstance(value, list) else value


def stamps(out: Path) -> dict[str, int]:
    """When each file of a run was last written; locks are opened by whoever looks."""
    return {str(p.relative_to(out)): p.stat().st_mtime_ns for p in out.rglob("*") if p.is_file() and p.name != ".lock"}
