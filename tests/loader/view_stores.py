"""A small real store with views: its logits are those of a linear network on the replayed images."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xxhash
from torch import Tensor

from kdcache.arrays import Array
from kdcache.config.views import CropConfig, EraseConfig, JitterConfig, MixConfig, ViewsConfig
from kdcache.store import Plan, StoreReader, StoreWriter, open_store, plain_field
from kdcache.views import ViewsSpec, draw, replay, views_json

ROWS, BLOCK, UNIT, CLASSES = 44, 8, 16, 4
IMAGE = Array("uint8", (3, 6, 5))
MIXED = ViewsConfig(
    count=3, plain=True, seed=1, crop=CropConfig(), flip=0.5, jitter=JitterConfig(brightness=0.4), erase=EraseConfig(),
    mixup=MixConfig(), cutmix=MixConfig(),
)  # fmt: skip
PLAIN = ViewsConfig(count=3, flip=0.5, shift=1)
SPEC = ViewsSpec(MIXED, IMAGE)


def ids() -> np.ndarray[Any, np.dtype[np.int64]]:
    return np.arange(ROWS, dtype=np.int64) * 3 + 1


def images() -> Tensor:
    places = torch.arange(ROWS * IMAGE.size)
    return (places * 7919 % 1021 % 256).byte().view(ROWS, *IMAGE.shape)


def network(x: Tensor) -> Tensor:
    """float32 [B, CLASSES], exact in small integers."""
    weight = torch.arange(IMAGE.size * CLASSES).mul(13).remainder(7).sub(3).float().view(CLASSES, -1)
    return x.flatten(1).float() @ weight.T


def shown(config: ViewsConfig, view: int) -> tuple[dict[str, np.ndarray[Any, Any]], Tensor]:
    """The plain fields of a view, and its images; 0: as they are."""
    if view == 0:
        return {}, images()
    spec = ViewsSpec(config, IMAGE)
    within = np.arange(ROWS) % BLOCK
    sizes = np.minimum(BLOCK, ROWS - (np.arange(ROWS) - within))
    found = draw(spec, view, ids(), within, sizes)
    params, given = torch.from_numpy(found["params"]), {}
    if spec.mixes:
        partners = torch.from_numpy(np.arange(ROWS) + found["partner"])
        given = {"partners": images()[partners], "partner_parameters": params[partners]}
    return found, replay(images(), params, spec, **given)


def plan_of(config: ViewsConfig, container: str = "parquet") -> Plan:
    spec = ViewsSpec(config, IMAGE)
    fields = [plain_field("id", Array("int64")), plain_field("input", IMAGE), plain_field("label", Array("int64"))]
    logits = plain_field("logits", Array("float32", (CLASSES,)))
    fields += [logits] if config.plain else []
    for view in range(1, config.count + 1):
        fields += [plain_field(f"view{view:02d}.{n}", array, shared=True) for n, array in spec.fields().items()]
        fields.append(dataclasses.replace(logits, name=f"view{view:02d}.logits"))
    return Plan(
        ROWS,
        {"name": "images", "fingerprint": "0" * 64, "classes": CLASSES, "class_names": []},
        {"kind": "source", "seed": 0},
        UNIT,
        BLOCK,
        BLOCK,
        {"format": container, "compression": "none"},
        tuple(fields),
        teacher={"model": "linear"},
        views=views_json(config),
    )


def write_store(
    path: Path,
    config: ViewsConfig = MIXED,
    container: str = "parquet",
    forged: dict[str, Any] | None = None,
    pixels: dict[str, list[list[str]]] | None = None,
    plan: Plan | None = None,
) -> StoreReader:
    """The store; `forged` columns stand in place of the true ones, `pixels` in place of the true digests."""
    plan = plan or plan_of(config, container)
    columns: dict[str, Any] = {"id": ids(), "input": images().numpy(), "label": np.arange(ROWS) % CLASSES}
    digests: dict[str, list[list[str]]] = {}
    for view in range(config.count + 1):
        numbers, x = shown(config, view)
        prefix = f"view{view:02d}." if view else ""
        columns |= {prefix + name: values for name, values in numbers.items()}
        columns[f"{prefix}logits"] = network(x).numpy()
        starts = [range(first, min(first + UNIT, ROWS), BLOCK) for first in range(0, ROWS, UNIT)]
        if view:
            digests[prefix[:-1]] = [
                [xxhash.xxh3_128(x[a : min(a + BLOCK, ROWS)].numpy().data).hexdigest() for a in unit] for unit in starts
            ]
    columns |= forged or {}
    digests |= pixels or {}
    writer = StoreWriter(path, plan)
    for unit in range(plan.units):
        first, last = plan.unit_range(unit)
        rows = {name: np.ascontiguousarray(columns[name][first:last]) for name in plan.columns}
        writer.write(unit, rows, {}, {view: units[unit] for view, units in digests.items()})
    writer.finish()
    return open_store(path)
