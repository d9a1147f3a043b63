"""Rows to judge, without a network unless one is given."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from kdcache.metrics import Judged

__all__ = ["classes", "rows"]


def _none(batch: dict[str, Tensor]) -> Mapping[str, Tensor]:
    raise AssertionError("this metric has no use for the network")


def rows(outputs: Mapping[str, Tensor], network: Any = _none, options: Any = None, **fields: Tensor) -> Judged:
    """Field names with a dot are written with two underscores."""
    named = {name.replace("__", "."): values for name, values in fields.items()}
    return Judged(outputs, named, network, options=options or {})


def classes(logits: list[Any], label: list[Any], **fields: Tensor) -> Judged:
    return rows({"logits": torch.tensor(logits)}, label=torch.tensor(label), **fields)
