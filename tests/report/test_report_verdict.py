"""What is claimed for distillation, and what is not."""

from __future__ import annotations

from typing import Any

import pytest

from kdcache.report import paired, rows, summarise, verdict


def results(**students: tuple[list[float], list[float]]) -> dict[str, Any]:
    """Results of students given as name = (their accuracies, the baseline's)."""
    baseline = next(iter(students.values()))[1]
    return {
        "teacher": {"accuracy": 0.9, "parameters": 1234},
        "baseline": {"accuracy": summarise(baseline)},
        "students": {
            name: {"accuracy": summarise(ours), "gain": paired(ours, theirs)}
            for name, (ours, theirs) in students.items()
        },
    }


ALONE = [0.80, 0.81, 0.82]


@pytest.mark.parametrize(
    ("ours", "said"),
    [
        ([0.85, 0.86, 0.87], "Distillation raised accuracy by 5.00 points"),
        ([0.75, 0.76, 0.77], "Distillation lowered accuracy by 5.00 points"),
        (
            [0.81, 0.82, 0.83],
            "Within noise: the distilled student differs from the same student fitted on labels alone "
            "by +1.00 points, only 1.00 times the larger standard deviation over 3 seeds.",
        ),
    ],
)
def test_one_student(ours: list[float], said: str) -> None:
    assert verdict(results(kd=(ours, ALONE))).startswith(said)


def test_one_seed_is_never_more_than_noise() -> None:
    assert "one seed shows no spread, so this cannot be told from noise" in verdict(results(kd=([0.99], [0.1])))


def test_several_students_are_counted_and_the_best_is_doubted() -> None:
    said = verdict(results(a=([0.85, 0.86, 0.87], ALONE), b=([0.81, 0.81, 0.82], ALONE), c=([0.7, 0.7, 0.7], ALONE)))
    assert said.startswith("Of 3 students, 1 beat the baseline, fitted on labels alone, by more than noise, 1 fell")
    assert "+5.00 points (a); picked as the best of 3" in said
    assert verdict(results(a=(ALONE, ALONE), b=(ALONE, ALONE))).startswith("Within noise: none of the 2 students")


@pytest.mark.parametrize(
    ("missing", "said"),
    [
        ({}, "No student was fitted"),
        ({"students": {"kd": {"parameters": 1}}}, "No accuracy was measured"),
        ({"students": {"kd": {"accuracy": summarise([0.5])}}}, "No baseline was fitted"),
    ],
)
def test_what_was_not_measured_is_not_claimed(missing: dict[str, Any], said: str) -> None:
    assert verdict(missing).startswith(said)


def test_rows_carry_the_numbers_in_words() -> None:
    teacher, baseline, student = rows(results(kd=([0.85, 0.86, 0.87], ALONE)))
    assert teacher.cells == ("90.00", "–", "–", "–", "–", "1,234", "–")
    assert baseline.cells[0] == "81.00 ± 1.00"
    assert student.cells[:4] == ("86.00 ± 1.00", "+5.00 ± 0.00", "5.00", "yes")
    assert rows({}) == []
