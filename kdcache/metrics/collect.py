"""From batches of evaluation rows to what a network said of all of them, and to its numbers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from kdcache.arrays import Array
from kdcache.metrics.judged import Judged, Network
from kdcache.metrics.measure import measure
from kdcache.metrics.table import find_metric

__all__ = ["fields_read", "input_range", "measured"]


def fields_read(metrics: Sequence[str], inputs: Sequence[str]) -> tuple[str, ...]:
    """The store's fields that a network with these inputs and its metrics need of every row."""
    wanted = [field for name in metrics for field in find_metric(name).fields]
    wanted = [*inputs, *("logits" if field == "teacher" else field for field in wanted)]
    return tuple(dict.fromkeys(wanted))


def input_range(array: Array) -> tuple[float, float]:
    """The lowest and highest value that a stored input may have: of bytes 0 to 255, of floats 0 to 1."""
    return (0.0, 1.0) if array.dtype.startswith(("float", "bfloat")) else (0.0, 255.0)


def measured(
    metrics: Sequence[str],
    options: Mapping[str, Any],
    network: Network,
    batches: Iterable[Mapping[str, Any]],
    *,
    class_names: tuple[str, ...] = (),
    input_range: tuple[float, float] = (0.0, 255.0),
) -> dict[str, float]:
    """Every number that the metrics give, over one pass: `network` gives the outputs of a batch of rows by name.

    `batches` hold the fields of `fields_read`. The inputs are kept only where a metric asks for them.
    """
    outputs: dict[str, list[Tensor]] = {}
    rows: dict[str, list[Tensor]] = {}
    inputs = any(find_metric(name).input for name in metrics)
    for batch in batches:
        plain = {name: value for name, value in batch.items() if isinstance(value, Tensor)}
        with torch.no_grad():
            said = network(plain)
        if "logits" in batch:
            plain["teacher"] = _best(batch["logits"])
        kept = {name: value for name, value in plain.items() if name != "logits" and (inputs or name != "input")}
        for found, place in ((said, outputs), (kept, rows)):
            for name, value in found.items():
                place.setdefault(name, []).append(value.cpu())
    judged = Judged(
        {name: torch.cat(values).float() for name, values in outputs.items()},
        {name: torch.cat(values) for name, values in rows.items()},
        network,
        class_names,
        input_range,
        options,
    )
    return measure(metrics, judged)


def _best(targets: Any) -> Tensor:
    """The teacher's most likely class of each row, of whatever a codec gave back."""
    if isinstance(targets, Tensor):
        return targets.argmax(dim=-1)
    dense = getattr(targets, "dense", None)
    best: Tensor = dense().argmax(dim=-1) if dense else targets.indices[..., 0]
    return best
