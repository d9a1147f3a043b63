"""`Judged`: what a network said of every evaluation row, beside what the store knows of these rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from kdcache.errors import UsageError

__all__ = ["Judged", "Network"]

Network = Callable[[dict[str, Tensor]], Mapping[str, Tensor]]


@dataclass(frozen=True, eq=False)
class Judged:
    """All evaluation rows, N of them, on the CPU; nothing in it is changed by a metric.

    outputs: the network's, float32, "logits" [N, ...] among them. rows: the store's plain fields of the same rows as
    they are stored, "input" among them where a metric asks for it, and "teacher", the teacher's best class int64 [N]
    (or [N, P]), where the store tells it.
    network: rows of the store on the CPU -> outputs, differentiable with respect to a floating "input", which is in
    the units of the stored values whatever its type: the network standardises it itself.
    input_range: the lowest and the highest value that an input may have, in the same units.
    options: what the recipe says to its metrics; a metric takes those that its keyword-only arguments name.
    """

    outputs: Mapping[str, Tensor]
    rows: Mapping[str, Tensor]
    network: Network
    class_names: tuple[str, ...] = ()
    input_range: tuple[float, float] = (0.0, 255.0)
    options: Mapping[str, Any] = field(default_factory=dict)

    def output(self, name: str = "logits") -> Tensor:
        """An output by its name; UsageError that says which there are."""
        if name not in self.outputs:
            raise UsageError(f"the network gives {sorted(self.outputs)}, and a metric needs its output {name!r}")
        return self.outputs[name]

    def row(self, name: str) -> Tensor:
        """A field by its name; UsageError that says which there are."""
        if name not in self.rows:
            raise UsageError(f"the evaluation rows have {sorted(self.rows)}, and a metric needs their {name!r}")
        return self.rows[name]

    def of_output(self, name: str, fields: tuple[str, ...]) -> Judged:
        """The same with the output `name` as "logits", and each field that has a `FIELD.name` replaced by that one."""
        rows = {**self.rows, **{one: self.rows[f"{one}.{name}"] for one in fields if f"{one}.{name}" in self.rows}}

        def network(batch: dict[str, Tensor]) -> Mapping[str, Tensor]:
            found = self.network(batch)
            return {**found, "logits": found[name]}

        return replace(self, outputs={**self.outputs, "logits": self.output(name)}, rows=rows, network=network)
