"""Every case of `cases_*.py`, and how far each loss is from its float64 reference."""

from __future__ import annotations

import dataclasses
import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from objective_case import Case
from torch import Tensor

__all__ = ["Found", "compared", "drawn_inputs", "every_case", "mapped", "value_and_slopes"]

HERE = Path(__file__).parent
Found = tuple[dict[str, Case], dict[str, Exception]]


def every_case() -> Found:
    """The cases by "family-name", and what was raised by the families that do not import."""
    cases: dict[str, Case] = {}
    broken: dict[str, Exception] = {}
    if str(HERE) not in sys.path:
        sys.path.insert(0, str(HERE))
    for file in sorted(HERE.glob("cases_*.py")):
        family = file.stem.removeprefix("cases_")
        try:
            found: list[Case] = importlib.import_module(file.stem).CASES
        except Exception as error:  # one family's fault is its own test's, not everybody's
            broken[family] = error
            continue
        for case in found:
            name = f"{family}-{case.name}"
            if name in cases:
                broken[family] = ValueError(f"two cases are called {name}")
            cases[name] = case
    return cases, broken


def mapped(item: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """The item with every tensor in it changed: a tensor, a list, or a dataclass such as the codecs' targets."""
    if isinstance(item, Tensor):
        return change(item)
    if isinstance(item, list | tuple):
        return type(item)(mapped(part, change) for part in item)
    if dataclasses.is_dataclass(item) and not isinstance(item, type):
        parts = {part.name: getattr(item, part.name) for part in dataclasses.fields(item)}
        return dataclasses.replace(item, **{n: change(part) for n, part in parts.items() if isinstance(part, Tensor)})
    return item


def drawn_inputs(case: Case, rows: int, seed: int) -> tuple[list[Any], list[Any]]:
    """Student's tensors and the rest, float32."""
    return case.make(torch.Generator().manual_seed(seed), rows)


def value_and_slopes(
    function: Callable[..., Tensor], student: list[Any], rest: list[Any], options: Any, dtype: torch.dtype | None = None
) -> tuple[Tensor, list[Tensor]]:
    """The scalar, and its gradient by each floating tensor of the student, all of `dtype` if one is given."""
    leaves: list[Tensor] = []

    def leaf(tensor: Tensor) -> Tensor:
        if not tensor.is_floating_point():
            return tensor
        leaves.append(tensor.detach().to(dtype or tensor.dtype, copy=True).requires_grad_())
        return leaves[-1]

    value = function(*mapped(student, leaf), *rest, **options)
    slopes = torch.autograd.grad(value, leaves, allow_unused=True)
    return value.detach(), [torch.zeros_like(x) if g is None else g for x, g in zip(leaves, slopes, strict=True)]


def compared(case: Case, rows: int, seed: int) -> tuple[float, float]:
    """Relative deviations from the float64 reference: of the value, and of the gradient by its norm (the worst tensor).

    The reference is given the same float32 numbers.
    """
    student, rest = drawn_inputs(case, rows, seed)
    value, slopes = value_and_slopes(case.function, student, rest, case.options)
    exact = mapped(rest, lambda tensor: tensor.double() if tensor.is_floating_point() else tensor)
    expected, wanted = value_and_slopes(case.reference, student, exact, case.options, torch.float64)
    assert expected.dtype == torch.float64, "the reference loses float64 on the way"
    assert wanted, "the case has no floating tensor of the student"
    assert any(slope.any() for slope in wanted), "the reference has no gradient at all: the case tests nothing"
    return _relative(value, expected), max(_relative(a, b) for a, b in zip(slopes, wanted, strict=True))


def _relative(found: Tensor, expected: Tensor) -> float:
    """|found - expected| / |expected|, in the 2-norm; NaN in either is NaN."""
    off, size = (found.double() - expected).norm().item(), expected.norm().item()
    return off / size if size else (0.0 if off == 0 else float("inf"))
