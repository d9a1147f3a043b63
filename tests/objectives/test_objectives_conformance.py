"""What every loss owes: the reference's value and gradient, for any size, order and precision of the batch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from objective_case import Case
from objective_deviation import compared, drawn_inputs, every_case, mapped, value_and_slopes
from torch import Tensor

from kdcache.errors import UsageError

CASES, BROKEN = every_case()
TOLERANCE = 1e-5  # relative, of the gradient's norm
VALUE = 5e-5  # relative, of the value: a divergence close to 0 is a difference of larger numbers

every = pytest.mark.parametrize("case", [pytest.param(case, id=name) for name, case in CASES.items()])


@pytest.mark.parametrize("family", BROKEN)
def test_family_does_not_import(family: str) -> None:
    raise BROKEN[family]


def test_cases_are_found() -> None:
    assert len(CASES) >= 9


def batches(case: Case) -> list[int]:
    return sorted({case.smallest, max(case.smallest, 5), 16})


@every
class TestConformance:
    @pytest.mark.parametrize("seed", [0, 1, 2])
    def test_value_and_gradient_are_the_references(self, case: Case, seed: int) -> None:
        for rows in batches(case):
            value, gradient = compared(case, rows, seed)
            assert value <= VALUE, f"the value is off by {value:.2g} at {rows} rows"
            assert gradient <= TOLERANCE, f"the gradient is off by {gradient:.2g} at {rows} rows"

    def test_it_is_a_float32_scalar_that_mutates_nothing(self, case: Case) -> None:
        student, rest = drawn_inputs(case, max(case.smallest, 6), 3)
        seen: list[tuple[Tensor, Tensor]] = []
        mapped([*student, *rest], lambda tensor: (seen.append((tensor, tensor.clone())), tensor)[1])
        value = case.function(*student, *rest, **case.options)
        assert value.shape == ()
        assert value.dtype == torch.float32
        for now, before in seen:
            torch.testing.assert_close(now, before, rtol=0, atol=0, equal_nan=True)

    def test_the_order_of_the_batch(self, case: Case) -> None:
        if not case.permutes:
            pytest.skip("its value is said to depend on the order of the batch")
        rows = max(case.smallest, 9)
        student, rest = drawn_inputs(case, rows, 4)
        order = torch.randperm(rows, generator=torch.Generator().manual_seed(5))
        value, slopes = value_and_slopes(case.function, student, rest, case.options)
        again, others = value_and_slopes(case.function, *taken(student, rest, order), case.options)
        assert again.item() == pytest.approx(value.item(), rel=VALUE)
        for slope, other in zip(slopes, others, strict=True):
            assert (slope[order] - other).norm() <= TOLERANCE * slope.norm()

    def test_too_small_a_batch_says_so(self, case: Case) -> None:
        student, rest = drawn_inputs(case, max(case.smallest, 2), 6)
        for rows in range(1, case.smallest):
            with pytest.raises(UsageError, match=r"\b(rows|samples|batch)\b"):
                case.function(*(x for part in taken(student, rest, torch.arange(rows)) for x in part), **case.options)

    def test_no_rows_are_nothing_or_a_usage_error(self, case: Case) -> None:
        """A rank's empty share of the last batch: 0, or a refusal where one row is refused too; never NaN."""
        student, rest = taken(*drawn_inputs(case, max(case.smallest, 2), 7), torch.arange(0))
        try:
            value, _ = value_and_slopes(case.function, student, rest, case.options)
        except UsageError:
            assert case.smallest > 1, "one row is defined, and none are refused"
        else:
            assert value.item() == 0

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_half_precision(self, case: Case, dtype: torch.dtype) -> None:
        if not case.half:
            pytest.skip("it is said not to take half precision")
        student, rest = drawn_inputs(case, max(case.smallest, 8), 8)
        value, slopes = value_and_slopes(case.function, student, rest, case.options, dtype)
        assert value.isfinite()
        assert value.dtype == torch.float32
        assert all(slope.dtype == dtype and slope.isfinite().all() for slope in slopes)
        # As on the rounded numbers in float32: nothing is computed in half precision on the way.
        rounded = mapped(student, lambda tensor: tensor.to(dtype).float() if tensor.is_floating_point() else tensor)
        same, _ = value_and_slopes(case.function, rounded, rest, case.options)
        assert value.item() == pytest.approx(same.item(), rel=VALUE)


def taken(student: list[Any], rest: list[Any], rows: Tensor) -> tuple[list[Any], list[Any]]:
    """Those rows of every tensor."""
    return mapped(student, lambda tensor: tensor[rows]), mapped(rest, lambda tensor: tensor[rows])
