"""Cases of the losses with several teachers: row by row, float64."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from cases_response import CLASSES, Inputs, kl, logits, probabilities, quantised
from objective_case import Case
from torch import Tensor

from kdcache.objectives.ensemble import ensemble, ensemble_by_label

__all__ = ["CASES"]


def three(generator: torch.Generator, rows: int) -> Inputs:
    return [logits(generator, rows)], [logits(generator, rows) for _ in range(3)]


def one_of_them_quantised(generator: torch.Generator, rows: int) -> Inputs:
    student, targets = quantised(generator, rows)
    return student, [logits(generator, rows), *targets]


def with_label(generator: torch.Generator, rows: int) -> Inputs:
    """The last row but one has no label, if there are rows enough."""
    student, teachers = three(generator, rows)
    label = torch.randint(CLASSES, (rows,), generator=generator)
    if rows > 2:
        label[-2] = -1
    return student, [*teachers, label]


def common(teachers: Sequence[Tensor], shares: Sequence[Any], mean: str, temperature: float) -> Tensor:
    """The teachers' distribution together, of one row of each."""
    if mean == "logits":
        together = [share * row for share, row in zip(shares, teachers, strict=True)]
        return probabilities(torch.stack(together).sum(0), temperature)
    each = [share * probabilities(row, temperature) for share, row in zip(shares, teachers, strict=True)]
    return torch.stack(each).sum(0)


def normalised(shares: Sequence[Any]) -> list[Any]:
    return [share / sum(shares) for share in shares]


def over_rows(shares_of: Callable[..., list[Any]]) -> Callable[..., Tensor]:
    """The reference whose teachers have these shares: `shares_of(row's logits of each, its label or None)`."""

    def reference(
        student: Tensor,
        *rest: Any,
        temperature: float = 1.0,
        mean: str = "probabilities",
        weights: tuple[float, ...] | None = None,
        confidence: str = "none",
    ) -> Tensor:
        teachers = [one if isinstance(one, Tensor) else one.codes * one.scale + one.zero for one in rest]
        label = teachers.pop() if not teachers[-1].is_floating_point() else None
        found = []
        for row in range(len(student)):
            here = [one[row] for one in teachers]
            own = weights or (1.0,) * len(here)
            shares = [a * b for a, b in zip(own, shares_of(here, None if label is None else label[row]), strict=True)]
            p = common(here, normalised(shares), mean, temperature)
            found.append(kl(p, probabilities(student[row], temperature)))
        return temperature**2 * torch.stack(found).mean()

    return reference


def alike(rows: list[Tensor], label: Any) -> list[Any]:
    return [1.0 for _ in rows]


def by_entropy(rows: list[Tensor], label: Any) -> list[Any]:
    each = [probabilities(row, 1.0) for row in rows]
    entropies = [-(p * p.log()).sum() for p in each]
    return [1 - entropy / sum(entropies) for entropy in entropies]


def by_label(rows: list[Tensor], label: Any) -> list[Any]:
    if label < 0:
        return alike(rows, label)
    odds = [1 / probabilities(row, 1.0)[int(label)] for row in rows]  # exp of the cross-entropy
    return [(1 - one / sum(odds)) / (len(rows) - 1) for one in odds]


CASES = [
    Case("probabilities", ensemble, over_rows(alike), three, {"temperature": 4.0}),
    Case("logits", ensemble, over_rows(alike), three, {"temperature": 4.0, "mean": "logits"}),
    Case("weights", ensemble, over_rows(alike), three, {"weights": (3.0, 0.0, 1.0)}),
    Case("quantised", ensemble, over_rows(alike), one_of_them_quantised, {"temperature": 2.0}),
    Case("entropy", ensemble, over_rows(by_entropy), three, {"confidence": "entropy", "temperature": 2.0}),
    Case(
        "entropy_weights",
        ensemble,
        over_rows(by_entropy),
        three,
        {"confidence": "entropy", "weights": (1.0, 2.0, 3.0), "mean": "logits"},
    ),
    Case("by_label", ensemble_by_label, over_rows(by_label), with_label, {"temperature": 4.0}),
    Case(
        "by_label_weights", ensemble_by_label, over_rows(by_label), with_label, {"mean": "logits", "weights": (1, 2, 1)}
    ),
]
