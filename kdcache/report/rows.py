"""The table of results as rows of ready words: what the page and the terminal both print."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from kdcache.report.measure import ACCURACY, Measure, measure_of, measures_of
from kdcache.report.verdict import beyond_noise
from kdcache.report.wording import NOTHING, amount, count, objective_words, spread

__all__ = ["Row", "filled", "headings", "rows"]

_AFTER = (
    "Gain ÷ sd",
    "Beyond noise",
    "Agreement, %",
    "Bytes a target",
    "Parameters",
    "Speed ÷ teacher",
    "Seconds",
)


@dataclass(frozen=True)
class Row:
    """One network. `cells` stand under `headings`; `detail` says what it is or was fitted on."""

    name: str
    role: Literal["teacher", "baseline", "student"]
    detail: str
    cells: tuple[str, ...]


def headings(results: Mapping[str, Any]) -> tuple[str, ...]:
    """What stands over the cells: every measure, the gain in the one compared, and what it costs."""
    return (*(m.heading for m in _measures(results)), measure_of(results).gain_heading, *_AFTER)


def rows(results: Mapping[str, Any]) -> list[Row]:
    """Teachers, baselines, students, in that order, as far as `results` (results.json) has them."""
    found, compared, measures = [], measure_of(results), _measures(results)
    for name, teacher in _some(results, "teacher").items():
        found.append(Row(name, "teacher", str(teacher.get("model") or ""), _cells(teacher, compared, measures)))
    for name, baseline in _some(results, "baseline").items():
        found.append(Row(name, "baseline", "the same student alone", _cells(baseline, compared, measures)))
    for name, student in (results.get("students") or {}).items():
        words = objective_words(student.get("objective"))
        found.append(Row(str(name), "student", words, _cells(student, compared, measures)))
    return found


def _some(results: Mapping[str, Any], kind: str) -> dict[str, Mapping[str, Any]]:
    """All of a kind by name; of results that know of one only, that one."""
    found = results.get(f"{kind}s") or {kind: results.get(kind)}
    return {str(name): one for name, one in found.items() if isinstance(one, Mapping)}


def _measures(results: Mapping[str, Any]) -> tuple[Measure, ...]:
    """Those compared and named; accuracy too, which older results have beside perplexity."""
    found = measures_of(results)
    return found if ACCURACY in found else (*found, ACCURACY)


def _cells(network: Mapping[str, Any], compared: Measure, measures: Sequence[Measure]) -> tuple[str, ...]:
    gain = network.get("gain") or {}
    return (
        *(_value(network.get(measure.key), measure) for measure in measures),
        spread(gain, compared.gain, compared.form) if gain else NOTHING,
        amount(gain.get("in_sds")),
        {True: "yes", False: "no", None: NOTHING}[beyond_noise(gain)],
        _agreement(network),
        amount(network.get("target_bytes")),
        count(network.get("parameters")),
        amount(network.get("speedup")),
        amount(network.get("seconds")),
    )


def _agreement(network: Mapping[str, Any]) -> str:
    return _value(network.get("agreement"), ACCURACY)


def _value(found: object, measure: Measure) -> str:
    """A single number, or mean ± sd over seeds."""
    return spread(found, measure.form, measure.form) if isinstance(found, Mapping) else measure.form(found)


def filled(table: Sequence[Row]) -> list[int]:
    """The places of cells that at least one row has a number in; the others only take width."""
    width = len(table[0].cells) if table else 0
    return [place for place in range(width) if any(row.cells[place] != NOTHING for row in table)]
