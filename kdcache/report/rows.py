"""The table of results as rows of ready words: what the page and the terminal both print."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from kdcache.report.measure import ACCURACY, PERPLEXITY, Measure, measure_of
from kdcache.report.verdict import beyond_noise
from kdcache.report.wording import NOTHING, amount, count, objective_words, spread

__all__ = ["HEADINGS", "Row", "filled", "rows"]

_MEASURES = (PERPLEXITY, ACCURACY)
_BEFORE = tuple(measure.heading for measure in _MEASURES)
_GAINS = tuple(measure.gain_heading for measure in _MEASURES)
HEADINGS = (
    *_BEFORE,
    *_GAINS,
    "Gain ÷ sd",
    "Beyond noise",
    "Agreement, %",
    "Bytes a target",
    "Parameters",
    "Seconds",
)


@dataclass(frozen=True)
class Row:
    """One network. `cells` stand under `HEADINGS`; `detail` says what it is or was fitted on."""

    name: str
    role: Literal["teacher", "baseline", "student"]
    detail: str
    cells: tuple[str, ...]


def rows(results: Mapping[str, Any]) -> list[Row]:
    """Teacher, baseline, students, in that order, as far as `results` (results.json) has them."""
    found, compared = [], measure_of(results)
    teacher = results.get("teacher")
    if isinstance(teacher, Mapping):
        found.append(Row("teacher", "teacher", str(teacher.get("model") or ""), _cells(teacher, compared)))
    baseline = results.get("baseline")
    if isinstance(baseline, Mapping):
        found.append(Row("baseline", "baseline", "the same student on labels alone", _cells(baseline, compared)))
    for name, student in (results.get("students") or {}).items():
        words = objective_words(student.get("objective"))
        found.append(Row(str(name), "student", words, _cells(student, compared)))
    return found


def _cells(network: Mapping[str, Any], compared: Measure) -> tuple[str, ...]:
    gain = network.get("gain") or {}
    return (
        *(_value(network.get(measure.key), measure) for measure in _MEASURES),
        *(spread(gain, m.gain, m.form) if gain and m is compared else NOTHING for m in _MEASURES),
        amount(gain.get("in_sds")),
        {True: "yes", False: "no", None: NOTHING}[beyond_noise(gain)],
        _value(network.get("agreement"), ACCURACY),
        amount(network.get("target_bytes")),
        count(network.get("parameters")),
        amount(network.get("seconds")),
    )


def _value(found: object, measure: Measure) -> str:
    """A single number, or mean ± sd over seeds."""
    return spread(found, measure.form, measure.form) if isinstance(found, Mapping) else measure.form(found)


def filled(table: Sequence[Row]) -> list[int]:
    """The places in `HEADINGS` under which at least one row has a number; the others only take width."""
    return [place for place in range(len(HEADINGS)) if any(row.cells[place] != NOTHING for row in table)]
