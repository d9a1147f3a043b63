"""Recipes that the tests of stage one dump, and networks of their own that misbehave on purpose."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from kdcache.config import Recipe
from kdcache.models import InputSpec, WeightsInfo, build_model, save_weights
from kdcache.recipe_file import load_recipe
from kdcache.sources import open_source
from kdcache.store import StoreReader

ROWS = 200
HERE = Path(__file__).parent


class Marked(nn.Module):
    """A linear classifier that looks for marks: the first value of a sample is its own number (`numbered`)."""

    def __init__(self, width: int, classes: int, **habits: Any) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.hidden = nn.Sequential(nn.Linear(width, 12), nn.ReLU())
        self.head = nn.Linear(12, classes)
        self.nan_for: list[int] = habits.get("nan_for", [])
        self.raise_for: list[int] = habits.get("raise_for", [])
        self.most: int = habits.get("most", 1 << 30)
        self.nan_below_fp32: bool = habits.get("nan_below_fp32", False)
        self.sleep: float = habits.get("sleep", 0.0)

    def forward(self, x: Tensor) -> Tensor:
        time.sleep(self.sleep)
        if len(x) > self.most:
            raise torch.OutOfMemoryError(f"a batch of {len(x)} does not fit")
        x = x.flatten(1).float()
        numbers = x[:, 0].round().long()
        if torch.isin(numbers, torch.tensor(self.raise_for, dtype=torch.long)).any():
            raise RuntimeError("cannot digest this")
        logits: Tensor = self.head(self.hidden(x / 100))
        bad = torch.isin(numbers, torch.tensor(self.nan_for, dtype=torch.long))
        if self.nan_below_fp32 and torch.is_autocast_enabled("cpu"):
            bad |= True
        return logits.masked_fill(bad[:, None], math.nan)


def marked(input_shape: tuple[int, ...], num_classes: int, **habits: Any) -> nn.Module:
    return Marked(math.prod(input_shape), num_classes, **habits)


class Numbered:
    """`count` float samples [9]: the first value of sample i is 1000 + i (never 0, which a shape check passes in)."""

    classes = 10

    def __init__(self, count: int = ROWS) -> None:
        draw = np.random.default_rng(5)
        self.inputs = draw.standard_normal((count, 9)).astype(np.float32)
        self.inputs[:, 0] = 1000 + np.arange(count)

    def __len__(self) -> int:
        return len(self.inputs)

    def read(self, ids: NDArray[np.int64]) -> dict[str, NDArray[Any]]:
        return {"input": self.inputs[ids], "label": ids % 10}


def write_recipe(folder: Path, text: str = "", *, fields: str = "", store: str = "", teacher: str = "",
                 source: str = "", name: str = "recipe") -> Path:  # fmt: skip
    """A recipe file for `ROWS` digits, units of 64, blocks of 16, batches of 24; without `teacher`, of inputs only."""
    table = f"[teacher]\nbatch_size = 24\n{teacher}\n{fields}" if teacher else ""
    rows = '[source]\nkind = "digits"\n' + f"rows = {ROWS}\nlabelled = 50\n"
    path = folder / f"{name}.toml"
    path.write_text(f"{source or rows}\n[store]\nunit_rows = 64\nblock_rows = 16\n{store}\n{table}\n{text}\n")
    return path


NUMBERED = '[source]\nkind = "python"\nfactory = "teacher_recipes:Numbered"\n'
MLP = 'model = "zoo:mlp"\nargs = { hidden = [16] }\nweights = "mlp.safetensors"'
CNN = 'model = "zoo:cnn"\nargs = { channels = [4, 6], hidden = 8 }\nweights = "cnn.safetensors"'
TOPK = '[fields.logits]\ncodec = "topk"\nk = 3\n'


def write_weights(folder: Path, *, outputs: int = 10) -> None:
    """Weights for `MLP` and `CNN`, untrained but the same every time; their scaling is not the store's own."""
    for name, args in (("mlp", {"hidden": [16]}), ("cnn", {"channels": [4, 6], "hidden": 8})):
        torch.manual_seed(11)
        source = open_source(load_recipe(write_recipe(folder, name="for-weights")).source)
        model = build_model(f"zoo:{name}", args, input=source.arrays["input"], outputs=outputs)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(3)  # so that the soft labels are not all alike
        spec = InputSpec((5.0,), (6.0,))
        info = WeightsInfo(f"zoo:{name}", args, source.arrays["input"], outputs, spec)
        save_weights(folder / f"{name}.safetensors", model, info)
    (folder / "for-weights.toml").unlink()


def batches(recipe: Recipe, store: StoreReader) -> Iterator[tuple[int, int, NDArray[np.int64]]]:
    """First row, last row and ids of every batch of a dump, worked out from the recipe alone."""
    source = open_source(recipe.source)
    ids = source.ids()[store.plan.permutation()]
    size = recipe.teacher.batch_size if recipe.teacher else 64
    for unit in range(0, len(ids), 64):
        end = min(unit + 64, len(ids))
        for first in range(unit, end, size):
            last = min(first + size, end)
            yield first, last, ids[first:last]


def files_of(store: Path) -> dict[str, bytes]:
    """Every file of a store but its card, by name."""
    return {
        str(p.relative_to(store)): p.read_bytes() for p in store.rglob("*") if p.is_file() and p.name != "README.md"
    }


def without_space(most: int) -> None:
    """Let this process write no file longer than `most` bytes: what a full disk looks like."""
    import resource
    import signal

    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))


def full_disk() -> None:
    """Room for the plan, and for no shard."""
    without_space(5000)


def find_modules() -> None:
    """Make this module importable where a recipe names it."""
    import sys

    sys.path.insert(0, str(HERE))
    os.environ["PYTHONPATH"] = str(HERE)
