"""Accuracy of a network that is told facts beside its input, when the facts are withheld."""

from __future__ import annotations

from dataclasses import replace

import torch

from kdcache.metrics.classification import accuracy
from kdcache.metrics.judged import Judged

__all__ = ["withheld_accuracy"]

_BATCH = 256


def withheld_accuracy(judged: Judged, *, withheld: str = "fact") -> dict[str, float]:
    """{"withheld_accuracy"}: the accuracy with zeros in place of the field `withheld`, for every row.

    Zeros are what `zoo:fused` takes for "none known". Of a network that is not given this field it is the accuracy.
    """
    if withheld not in judged.rows:
        return {"withheld_accuracy": accuracy(judged)["accuracy"]}
    rows = {**judged.rows, withheld: torch.zeros_like(judged.rows[withheld])}
    found = []
    with torch.no_grad():
        for first in range(0, len(rows["input"]), _BATCH):
            said = judged.network({name: values[first : first + _BATCH] for name, values in rows.items()})
            found.append(said["logits"].float().cpu())
    without = replace(judged, outputs={**judged.outputs, "logits": torch.cat(found)})
    return {"withheld_accuracy": accuracy(without)["accuracy"]}
