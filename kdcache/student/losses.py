"""The losses of the steps since the last row of metrics, kept on the device: reading one a step would wait for it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from kdcache.errors import DataError

__all__ = ["RunningLoss"]


class RunningLoss:
    """Row-weighted means of the loss and its terms over the steps since `take`."""

    def __init__(self) -> None:
        self._names: tuple[str, ...] = ()
        self._values: list[Tensor] = []
        self._rows: list[int] = []

    def __len__(self) -> int:
        return len(self._values)

    def add(self, rows: int, loss: Tensor, terms: Mapping[str, Tensor]) -> None:
        """One step's mean loss and terms (scalars, detached) over `rows` rows."""
        self._names = tuple(terms)
        self._values.append(torch.stack([loss, *terms.values()]))
        self._rows.append(rows)

    def take(self, step: int, place: str, cure: str, reduce: Callable[[Tensor], Tensor]) -> dict[str, Any]:
        """{"loss", "terms"} over all processes since the last time; DataError naming the first step not finite.

        `step` is the number of steps done; `place` begins the message and `cure` ends it.
        """
        table, rows = self._table()
        sums = reduce(torch.cat([(table * rows[:, None]).sum(0), rows.sum()[None]]))
        means = (sums[:-1] / sums[-1]).tolist()
        if not all(map(math.isfinite, means)):
            self.check(step, place, cure)
            raise DataError(f"{place}the loss of another process is not a finite number, by step {step}; {cure}")
        self._values, self._rows = [], []
        return {"loss": means[0], "terms": dict(zip(self._names, means[1:], strict=True))}

    def check(self, step: int, place: str, cure: str) -> None:
        """DataError naming the first step whose loss was not finite, if there is one."""
        if self._values:
            losses = self._table()[0][:, 0]
            bad = torch.isfinite(losses).logical_not()
            if bad.any():
                first = int(bad.int().argmax())
                raise DataError(
                    f"{place}the loss became {losses[first].item()} at step "
                    f"{step - len(self._values) + first + 1}; {cure}"
                )

    def state(self) -> tuple[dict[str, Tensor], list[str]]:
        """What a checkpoint keeps: the steps' values and rows, and the terms' names."""
        if not self._values:
            return {}, []
        table, rows = self._table()
        return {"losses": table, "rows": rows}, list(self._names)

    def load_state(self, tensors: Mapping[str, Tensor], names: list[str], device: torch.device) -> None:
        """Undo `state`."""
        self._names = tuple(names)
        self._values = [row.float().to(device) for row in tensors["losses"]] if tensors else []
        self._rows = [int(count) for count in tensors["rows"].tolist()] if tensors else []

    def _table(self) -> tuple[Tensor, Tensor]:
        """float64 [steps, 1 + terms], and each step's rows float64 [steps]."""
        table = torch.stack(self._values).double()
        return table, torch.tensor(self._rows, dtype=torch.float64, device=table.device)
