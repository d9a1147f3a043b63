"""Stores of one `logits` field whose configuration, columns, tables and facts a stranger chose; digests are right."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hostile_store import check

from kdcache.arrays import Array
from kdcache.codecs import CODECS
from kdcache.config import ObjectiveConfig
from kdcache.errors import KdcacheError, UsageError
from kdcache.fingerprint import canonical
from kdcache.loader import StreamingLoader
from kdcache.objectives import compose
from kdcache.store import Plan, StoredField, open_store, parquet, plain_field
from kdcache.store.digest import unit_digests
from kdcache.store.plan_file import plan_from_json
from kdcache.store.tables import pack_table, table_path

__all__ = ["CLASSES", "HONEST", "ROWS", "Columns", "honest", "read", "store", "temperature_of"]

Columns = dict[str, np.ndarray[Any, Any]]
ROWS, CLASSES, PILOT = 6, 40, 80
# A configuration of every kind of column that a codec of logits has.
HONEST: dict[str, tuple[str, dict[str, Any]]] = {
    "topk of packed indices": ("topk", {"k": 5}),
    "topk of uint8 values and mass": ("topk", {"k": 7, "dtype": "uint8", "mass": 0.9}),
    "topk of mass": ("topk", {"k": 7, "dtype": "float32", "mass": 0.9}),
    "topk with an anchor": ("topk", {"k": 3, "temperatures": [3.0], "anchor": 7.0}),
    "topk of all classes": ("topk", {"k": CLASSES}),
    "sampled": ("sampled", {"draws": 9}),
    "threshold": ("threshold", {"k": 12}),
    "threshold of float16": ("threshold", {"k": 20, "dtype": "float16", "temperature": 2.0}),
    "threshold without a head": ("threshold", {"k": 1}),
    "quant of 8 bits": ("quant", {"bits": 8}),
    "quant of 4 bits": ("quant", {"bits": 4, "dtype": "float32"}),
    "lowrank": ("lowrank", {"bytes": 8}),
    "dense": ("dense", {"dtype": "float16"}),
}


@functools.cache
def honest(name: str, shape: tuple[int, ...] = (CLASSES,)) -> tuple[StoredField, Columns, Columns]:
    """The field, columns and tables that kdcache writes of some logits."""
    codec, asked = HONEST[name]
    module, array = CODECS[codec], Array("float32", shape)
    configuration = module.configure(asked, array)
    drawn = np.random.default_rng(4).standard_normal((PILOT, *shape)).astype(np.float32) * 3
    tables = module.fit(torch.from_numpy(drawn).reshape(-1, shape[-1]), configuration)
    values = torch.from_numpy(drawn[:ROWS])
    keys = torch.arange(values[..., 0].numel()).reshape(values.shape[:-1])
    made = module.encode(values, configuration, {key: torch.from_numpy(t) for key, t in tables.items()}, keys)
    field = StoredField("logits", array, codec, configuration, module.columns(array, configuration))
    return field, {suffix: column.numpy() for suffix, column in made.items()}, tables


def store(
    path: Path,
    field: StoredField,
    columns: Columns,
    tables: Mapping[str, np.ndarray[Any, Any]] | None = None,
    facts: Mapping[str, Any] | None = None,
    change: Mapping[str, Any] | None = None,
) -> Path:
    """A store of one unit of ids, labels (where no axis is a position) and this field. `change`: keys of plan.json."""
    packed = pack_table(tables) if tables else b""
    digest = hashlib.sha256(packed).hexdigest()
    lead = field.array.shape[:-1]
    fields = (
        plain_field("id", Array("int64")), plain_field("input", Array("float32", (4,))),
        plain_field("label", Array("int32", lead)), field,
    )  # fmt: skip
    plan = Plan(
        ROWS,
        {"name": "forged", "fingerprint": "ab" * 32, "classes": field.array.shape[-1], "class_names": []},
        {"kind": "source", "seed": 0}, ROWS, ROWS, ROWS, {"format": "parquet", "compression": "none"}, fields,
        teacher={"model": "zoo:mlp", "args": {}},
        tables={"logits": digest} if tables else {},
    )  # fmt: skip
    value = {**json.loads(canonical(plan.to_json())), **(change or {})}
    plan = plan_from_json(value, "forged")
    stored: Columns = {
        "id": np.arange(ROWS), "input": np.ones((ROWS, 4), np.float32), "label": np.zeros((ROWS, *lead), np.int32),
        **{field.column(suffix): np.ascontiguousarray(column) for suffix, column in columns.items()},
    }  # fmt: skip
    digests = unit_digests(stored, ROWS)
    header = canonical({"plan": plan.digest, "unit": 0, "rows": ROWS, "digests": digests})
    data = bytes(parquet.encode(stored, plan.columns, ROWS, "none", header))
    sha256 = hashlib.sha256(data).hexdigest()
    record = {"unit": 0, "sha256": sha256, "bytes": len(data), "facts": dict(facts or {})}
    for folder in ("data", "units", "tables"):
        (path / folder).mkdir(parents=True, exist_ok=True)
    (path / "plan.json").write_bytes(plan.bytes)
    (path / "data" / f"000000-{sha256[:16]}{parquet.SUFFIX}").write_bytes(data)
    (path / "units" / "000000.json").write_bytes(canonical(record))
    manifest = {"format": "kdcache", "version": 1, "plan": plan.digest, "alignment": plan.alignment, "rows": ROWS}
    (path / "manifest.json").write_bytes(canonical({**manifest, "units": [record]}))
    if tables:
        table_path(path, "logits", digest).write_bytes(packed)
    return path


def temperature_of(field: StoredField) -> float:
    """One that the field serves."""
    found: float = field.configuration.get("temperature", 1.0)
    return found


def read(path: Path, temperature: float = 1.0) -> KdcacheError | None:
    """Train on the store as far as the loss of one batch; what refused, or None, with loss and gradient finite."""
    try:
        with open_store(path) as opened:
            field = opened.fields["logits"]
            objective = compose(
                [ObjectiveConfig(name="kd", temperature=temperature)], opened.fields, field.array.shape[-1],
                opened.manifest.facts,
            )  # fmt: skip
            for batch in StreamingLoader(opened, ROWS, fields=["logits"], threads=1):
                student = torch.zeros(ROWS, *field.array.shape, requires_grad=True)
                targets = batch["logits"]
                flat = {"logits": targets.flatten(0, -2) if isinstance(targets, torch.Tensor) else targets.flatten()}
                loss, _ = objective({"logits": student.flatten(0, -2)}, flat, objective.adapters({}))
                loss.backward()  # type: ignore[no-untyped-call]
                assert student.grad is not None
                assert loss.isfinite(), f"the loss is {loss}"
                assert student.grad.isfinite().all(), "a gradient is not finite"
    except UsageError as error:  # of the recipe: this store does not serve what it asks for
        return error
    except KdcacheError as error:
        check(error)
        return error
    return None
