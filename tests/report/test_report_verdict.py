"""What is claimed for distillation, and what is not."""

from __future__ import annotations

from typing import Any

import pytest

from kdcache.report import paired, rows, summarise, verdict
from kdcache.report.rows import Row, headings


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
    found = results(kd=([0.85, 0.86, 0.87], ALONE))
    teacher, baseline, student = rows(found)
    assert shown(found, teacher) == {"Accuracy, %": "90.00", "Parameters": "1,234"}
    assert shown(found, baseline) == {"Accuracy, %": "81.00 ± 1.00"}
    assert shown(found, student) == {
        "Accuracy, %": "86.00 ± 1.00",
        "Gain, points": "+5.00 ± 0.00",
        "Gain ÷ sd": "5.00",
        "Beyond noise": "yes",
    }
    assert rows({}) == []


def shown(results: dict[str, Any], row: Row) -> dict[str, str]:
    return {heading: cell for heading, cell in zip(headings(results), row.cells, strict=True) if cell != "–"}


def language(**students: list[float]) -> dict[str, Any]:
    """Results of language models given as name = perplexities; the baseline's are 40, 41, 42."""
    alone = [40.0, 41.0, 42.0]
    return {
        "metric": "perplexity",
        "teacher": {"perplexity": 30.0, "accuracy": 0.4},
        "baseline": {"perplexity": summarise(alone), "accuracy": summarise([0.3, 0.3, 0.3])},
        "students": {
            name: {
                "perplexity": summarise(ours),
                "accuracy": summarise([0.31, 0.32, 0.33]),
                "gain": paired(alone, ours),
                "agreement": summarise([0.5, 0.5, 0.53]),
                "target_bytes": 36,
            }
            for name, ours in students.items()
        },
    }


@pytest.mark.parametrize(
    ("ours", "said"),
    [
        ([36.0, 37.0, 38.0], "Distillation lowered perplexity by 4.00 over the same student fitted on labels alone"),
        ([45.0, 46.0, 47.0], "Distillation raised perplexity by 5.00 over the same student fitted on labels alone"),
        ([39.0, 40.0, 41.0], "Within noise: the distilled student differs"),
    ],
)
def test_less_perplexity_is_better(ours: list[float], said: str) -> None:
    assert verdict(language(kd=ours)).startswith(said)
    mean = sum(ours) / 3
    assert verdict(language(kd=ours)).endswith(
        f"The student is at {mean:.2f} (perplexity), its teacher at 30.00 (perplexity)."
    )


def test_the_student_with_the_least_perplexity_is_the_best_of_several() -> None:
    said = verdict(language(a=[36.0, 37.0, 38.0], b=[50.0, 50.0, 51.0], c=[40.0, 41.0, 42.5]))
    assert said.startswith("Of 3 students, 1 beat the baseline, fitted on labels alone, by more than noise, 1 fell")
    assert "−4.00 in perplexity, of which less is better (a); picked as the best of 3" in said


def test_rows_of_language_models() -> None:
    found = language(kd=[36.0, 37.0, 38.0])
    teacher, baseline, student = rows(found)
    assert shown(found, teacher) == {"Perplexity": "30.00", "Accuracy, %": "40.00"}
    assert shown(found, baseline) == {"Perplexity": "41.00 ± 1.00", "Accuracy, %": "30.00 ± 0.00"}
    assert shown(found, student) == {
        "Perplexity": "37.00 ± 1.00",
        "Accuracy, %": "32.00 ± 1.00",
        "Perplexity saved": "+4.00 ± 0.00",
        "Gain ÷ sd": "4",
        "Beyond noise": "yes",
        "Agreement, %": "51.00 ± 1.73",
        "Bytes a target": "36",
    }
