"""The drift watch's bounds, by hand, and what a manifest makes of its units' errors."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from store_example import example_plan

from kdcache.store.drift import FLAGGED, REFUSED, drift, drifted
from kdcache.store.manifest import Manifest, Record


def error(mean: float, sd: float = 0.0, rows: int = 256) -> dict[str, Any]:
    return {"mean": mean, "sd": sd, "rows": rows}


@pytest.mark.parametrize(
    ("first", "found", "flagged", "refused"),
    [
        (error(0.01), error(0.029), False, False),
        (error(0.01), error(0.031), True, False),
        (error(0.01), error(0.31), True, True),
        # six standard errors of 4 rows against 256: 6 * 0.05 * sqrt(1/256 + 1/4) = 0.1512
        (error(0.01, 0.05), error(0.15, rows=4), False, False),
        (error(0.01, 0.05), error(0.17, rows=4), True, False),
        (error(0.0), error(9e-7), False, False),
        (error(0.0), error(2e-6), True, False),
        (error(0.0), error(1.1e-3), True, True),
    ],
)
def test_bounds(first: dict[str, Any], found: dict[str, Any], flagged: bool, refused: bool) -> None:
    assert (drifted(first, found, FLAGGED), drifted(first, found, REFUSED)) == (flagged, refused)


def manifest(*errors: Any) -> Manifest:
    plan = example_plan(rows=24 * len(errors))
    units = [Record(unit, "ab" * 32, 1, {"error": {"logits": found}}) for unit, found in enumerate(errors)]
    units[0] = dataclasses.replace(units[0], facts={**units[0].facts, "fidelity": {"logits": {"kl": {"1": 0.5}}}})
    return Manifest(plan.digest, plan.alignment, plan.rows, tuple(units))


def test_a_manifest_names_the_units_out_of_range() -> None:
    found = manifest(error(0.01), error(0.02), error(0.04), error(0.01), error(0.05)).facts
    assert found == {
        "fidelity": {"logits": {"kl": {"1": 0.5}}},
        "drift": {"logits": {"units": [2, 4], "ratio": pytest.approx(5.0), "error": 0.01}},
    }
    assert "drift" not in manifest(error(0.01), error(0.02)).facts


@pytest.mark.parametrize("strange", [7, [], {}, {"mean": "x", "sd": 0.0, "rows": 1}, error(1.0) | {"rows": 0},
                                     {**error(1.0), "more": 1}, error(float("inf"))])  # fmt: skip
def test_what_is_no_error_of_ours_is_left_out(strange: Any) -> None:
    assert drift({0: {"error": {"logits": error(0.01)}}, 1: {"error": {"logits": strange}}}) == {}
    assert drift({0: {"error": {"logits": strange}}, 1: {"error": {"logits": error(1.0)}}}) == {}
    assert drift({0: {"error": strange}, 1: {}}) == {}
    assert drift({1: {"error": {"logits": error(1.0)}}}) == {}
