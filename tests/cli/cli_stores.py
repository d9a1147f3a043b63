"""Small stores for the command line to be tried on, and ways to damage them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from kdcache.fingerprint import canonical
from kdcache.recipe_file import load_recipe
from kdcache.teacher import dump

RECIPE = """
name = "small"
[source]
kind = "digits"
rows = 200
labelled = 80
[store]
unit_rows = 64
block_rows = 16
[teacher]
model = "zoo:mlp"
args = { hidden = [8] }
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
steps = 4
batch_size = 32
"""


def write_recipe(folder: Path, *changes: tuple[str, str], name: str = "small") -> Path:
    """`RECIPE` with some of its text replaced."""
    text = RECIPE
    for old, new in changes:
        assert old in text, old
        text = text.replace(old, new)
    path = folder / f"{name}.toml"
    path.write_text(text)
    return path


def write_store(folder: Path, *changes: tuple[str, str], name: str = "store") -> Path:
    """The store of that recipe; its teacher is untrained, with weights that were drawn once."""
    import torch

    torch.manual_seed(1)
    dump(load_recipe(write_recipe(folder, *changes, name=name)), folder / name)
    return folder / name


def edit(path: Path, **keys: Any) -> None:
    """Change keys of a JSON file of a store, in canonical form."""
    table = {**json.loads(path.read_bytes()), **keys}
    path.chmod(0o644)
    path.write_bytes(canonical(table))


def flip(path: Path, place: int) -> None:
    """Flip one bit of a file."""
    data = bytearray(path.read_bytes())
    data[place % len(data)] ^= 1 << place % 8
    path.chmod(0o644)
    path.write_bytes(data)
