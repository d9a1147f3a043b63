"""The table of results as rows of ready words: what the page and the terminal both print."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from kdcache.report.verdict import beyond_noise
from kdcache.report.wording import NOTHING, amount, count, objective_words, percent, points, spread

__all__ = ["HEADINGS", "Row", "filled", "rows"]

HEADINGS = ("Accuracy, %", "Gain, points", "Gain ÷ sd", "Beyond noise", "Agreement, %", "Parameters", "Seconds")


@dataclass(frozen=True)
class Row:
    """One network. `cells` stand under `HEADINGS`; `detail` says what it is or was fitted on."""

    name: str
    role: Literal["teacher", "baseline", "student"]
    detail: str
    cells: tuple[str, ...]


def rows(results: Mapping[str, Any]) -> list[Row]:
    """Teacher, baseline, students, in that order, as far as `results` (results.json) has them."""
    found = []
    teacher = results.get("teacher")
    if isinstance(teacher, Mapping):
        found.append(
            Row(
                "teacher",
                "teacher",
                str(teacher.get("model") or ""),
                (
                    percent(teacher.get("accuracy")),
                    NOTHING,
                    NOTHING,
                    NOTHING,
                    NOTHING,
                    count(teacher.get("parameters")),
                    amount(teacher.get("seconds")),
                ),
            )
        )
    baseline = results.get("baseline")
    if isinstance(baseline, Mapping):
        found.append(
            Row(
                "baseline",
                "baseline",
                "the same student on labels alone",
                (
                    spread(baseline.get("accuracy")),
                    NOTHING,
                    NOTHING,
                    NOTHING,
                    percent(baseline.get("agreement")),
                    count(baseline.get("parameters")),
                    amount(baseline.get("seconds")),
                ),
            )
        )
    for name, student in (results.get("students") or {}).items():
        gain = student.get("gain") or {}
        found.append(
            Row(
                str(name),
                "student",
                objective_words(student.get("objective")),
                (
                    spread(student.get("accuracy")),
                    spread(gain, points),
                    amount(gain.get("in_sds")),
                    {True: "yes", False: "no", None: NOTHING}[beyond_noise(gain)],
                    percent(student.get("agreement")),
                    count(student.get("parameters")),
                    amount(student.get("seconds")),
                ),
            )
        )
    return found


def filled(table: Sequence[Row]) -> list[int]:
    """The places in `HEADINGS` under which at least one row has a number; the others only take width."""
    return [place for place in range(len(HEADINGS)) if any(row.cells[place] != NOTHING for row in table)]
