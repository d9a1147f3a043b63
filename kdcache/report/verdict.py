"""Whether distillation brought anything, in plain words that claim no more than the seeds support."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kdcache.report.measure import Measure, measure_of
from kdcache.report.wording import amount, visible

__all__ = ["NOISE", "beyond_noise", "verdict"]

NOISE = 2.0  # gains smaller than so many times the larger standard deviation are called noise


def beyond_noise(gain: Mapping[str, Any]) -> bool | None:
    """True or False by |gain| >= 2 * max(sd); None where there is no spread to compare with."""
    ratio = gain.get("in_sds")
    return None if ratio is None else abs(ratio) >= NOISE


def verdict(results: Mapping[str, Any]) -> str:
    """One or two sentences on the gain of the students over the baseline."""
    students, measure = results.get("students") or {}, measure_of(results)
    if not students:
        return "No student was fitted, so this run says nothing about what distillation brings."
    if not any(isinstance(student.get(measure.key), Mapping) for student in students.values()):
        return (
            f"No {measure.key} was measured (the recipe names no eval_source), "
            "so this run says nothing about what distillation brings."
        )
    gains = {name: student["gain"] for name, student in students.items() if student.get("gain")}
    if not gains:
        return "No baseline was fitted beside the students, so what distillation brings was not measured."
    if len(gains) == 1:
        ((name, gain),) = gains.items()
        return f"{_single(gain, measure)} {_against_teacher(results, students[name], measure)}".strip()
    return _several(gains, measure)


def _single(gain: Mapping[str, Any], measure: Measure) -> str:
    size = f"{measure.form(abs(gain['mean']))} {measure.step}"
    runs = len(gain["seeds"])
    beyond = beyond_noise(gain)
    if beyond is None:
        why = "one seed shows no spread" if runs == 1 else f"the {runs} seeds show no spread"
        direction = "above" if (gain["mean"] >= 0) != measure.lower_is_better else "below"
        return (
            f"The distilled student is {size} {direction} the same student fitted on labels alone; "
            f"{why}, so this cannot be told from noise."
        )
    ratio = amount(abs(gain["in_sds"]))
    if not beyond:
        return (
            f"Within noise: the distilled student differs from the same student fitted on labels alone by "
            f"{measure.gain(gain['mean'])} {measure.step}, only {ratio} times the larger standard deviation over "
            f"{runs} seeds."
        )
    effect = "raised" if (gain["mean"] > 0) != measure.lower_is_better else "lowered"
    by = (
        f"{measure.key} by {size}"
        if measure.step == "points"
        else f"{measure.key} by {measure.form(abs(gain['mean']))}"
    )
    return (
        f"Distillation {effect} {by} over the same student fitted on labels alone: "
        f"{ratio} times the larger standard deviation over {runs} seeds, more than noise."
    )


def _against_teacher(results: Mapping[str, Any], student: Mapping[str, Any], measure: Measure) -> str:
    teacher = (results.get("teacher") or {}).get(measure.key)
    if teacher is None:
        return ""
    unit = f" {measure.unit}" if measure.unit else f" ({measure.key})"
    ours = measure.form(student[measure.key]["mean"])
    return f"The student is at {ours}{unit}, its teacher at {measure.form(teacher)}{unit}."


def _several(gains: Mapping[str, Mapping[str, Any]], measure: Measure) -> str:
    judged = {name: beyond_noise(gain) for name, gain in gains.items()}
    best = max(gains, key=lambda name: gains[name]["mean"])
    size = (
        f"{measure.gain(gains[best]['mean'])} points"
        if measure.step == "points"
        else f"{measure.gain(-gains[best]['mean'] if measure.lower_is_better else gains[best]['mean'])} {measure.step}"
        + (", of which less is better" if measure.lower_is_better else "")
    )
    largest = f"The largest difference is {size} ({visible(best)})"
    if None in judged.values():
        return f"{largest}; there is no spread over seeds to compare it with, so it cannot be told from noise."
    above = sum(bool(judged[name]) and gains[name]["mean"] > 0 for name in gains)
    below = sum(bool(judged[name]) and gains[name]["mean"] < 0 for name in gains)
    if not above and not below:
        return (
            f"Within noise: none of the {len(gains)} students differs from the baseline by {NOISE:g} standard "
            f"deviations. {largest}."
        )
    lower = f", {below} fell {'behind' if measure.lower_is_better else 'below'} it by as much" if below else ""
    return (
        f"Of {len(gains)} students, {above} beat the baseline, fitted on labels alone, by more than noise{lower}. "
        f"{largest}; picked as the best of {len(gains)} on the evaluation rows, it flatters itself a little."
    )
