"""How fast networks answer, side by side."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path

import torch

from kdcache.loader import StreamingLoader
from kdcache.models import load_model
from kdcache.store import open_store
from kdcache.student.evaluate import input_arrays
from kdcache.student.module import Batch, network_outputs

__all__ = ["forward_rates"]

ROWS, ROUNDS = 64, 7


def forward_rates(weights: Mapping[str, Path], store: Path) -> dict[str, float]:
    """Samples a second of each network's forward pass, from its weights file: the same rows of the store, in evaluation
    mode without gradients, in turns, the median of several. Networks whose inputs the store lacks are left out."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    networks = {}
    with open_store(store) as reader:
        for name, path in weights.items():
            model, info = load_model(path, allow_import=True)  # of our own run: it may name the user's own factory
            fields = [field for field, _ in input_arrays(info)]
            if all(field in reader.fields for field in fields):
                networks[name] = model.to(device).eval(), info, fields
        wanted = tuple(dict.fromkeys(field for _, _, fields in networks.values() for field in fields))
        rows = min(ROWS, reader.rows)
        with closing(StreamingLoader(reader, rows, shuffle=False, fields=wanted, device=str(device))) as loader:
            batch: Batch = next(iter(loader))
    taken: dict[str, list[float]] = {name: [] for name in networks}
    with torch.inference_mode():
        for _ in range(ROUNDS + 1):  # the first warms up
            for name, (model, info, fields) in networks.items():
                began = time.perf_counter()
                network_outputs(model, info.input_spec, fields, batch)
                if device.type == "cuda":
                    torch.cuda.synchronize()
                taken[name].append(time.perf_counter() - began)
    return {name: round(rows / statistics.median(seconds[1:]), 1) for name, seconds in taken.items()}
