"""From the facts of a run's stages to results.json and report.html."""

from __future__ import annotations

import itertools
import json
import os
import platform
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from kdcache.config import Recipe
from kdcache.files import replace_bytes
from kdcache.metrics import find_metric
from kdcache.recipe_students import Student
from kdcache.report import agreement, paired, summarise, write_report
from kdcache.store import describe
from kdcache.student import read_metrics

__all__ = ["collect", "write_results"]

Facts = Mapping[str, Any]


def collect(
    recipe: Recipe,
    students: Mapping[str, Student],
    baseline_of: Mapping[str, str],
    facts: Mapping[str, Facts],
    stores: Mapping[str | None, Path],
    command: str,
) -> dict[str, Any]:
    """The content of results.json. `facts` is by stage; `baseline_of` names each student's baseline stage.

    `metric` is what networks are compared by; a gain is positive where the student is better.
    """
    results: dict[str, Any] = {"name": recipe.name, "command": command, "environment": _environment()}
    positions = facts["check"]["positions"]
    metric, higher = _compared(recipe, facts)
    results |= {"metric": metric, "higher_is_better": higher, "metrics": _measured(facts)}
    rates = facts.get("speed", {})
    results["teachers"] = _teachers(recipe, facts, results["metrics"])
    results["teacher"] = next(iter(results["teachers"].values()), None)
    slowest = min((rates[name] for name in results["teachers"] if name in rates), default=None)
    baselines = {name: _network(facts, name) for name in dict.fromkeys(baseline_of.values())}
    for name, found in baselines.items():
        found |= _speed(rates, name, slowest)
    if baselines:
        results["baseline"] = baselines["baseline"]
        results["baselines"] = baselines
    results["students"] = {}
    described = {name: _store(path) for name, path in stores.items()}
    predicted = facts.get("predictions", {})
    teacher_classes = facts.get("teacher accuracy", {}).get("predictions")
    for name, student in students.items():
        found = _network(facts, f"student {name}") | _speed(rates, name, slowest)
        baseline = baselines.get(baseline_of.get(name, ""), {})
        if found.get(metric) and baseline.get(metric):
            pair = found[metric]["seeds"], baseline[metric]["seeds"]
            found["gain"] = paired(*pair) if higher else paired(*reversed(pair))
            if baseline_of[name] != "baseline":
                found["baseline"] = baseline
        if teacher_classes and name in predicted:
            found["agreement"] = agreement(predicted[name], teacher_classes)
        if positions or len(stores) > 1:
            found["store"] = " + ".join(str(one) for one in student.stores)
            widths = (described[one]["target_bytes_per_row"] for one in student.stores)
            found["target_bytes"] = sum(widths) / (positions or 1)
        found["model"], found["args"] = student.model, student.args
        found["objective"] = [term.model_dump(exclude_none=True) for term in student.objective]
        results["students"][name] = found
    results["seeds"] = list(next(iter(students.values())).train.seeds) if students else []
    results["store"] = next(iter(described.values()))
    if len(described) > 1:
        results["stores"] = described
    fitted = [float(facts[key]["samples_per_second"]) for key in facts if key.startswith("student ")]
    dumped = next((facts[key] for key in facts if key == "store" or key.startswith("store ")), facts.get("inputs", {}))
    results["throughput"] = {
        "dump_samples_per_second": dumped.get("samples_per_second"),
        "train_samples_per_second": float(np.median(fitted)) if fitted else None,
    }
    if recipe.grid:
        results["grid"] = _grid(recipe, students)
    return results


def write_results(
    out: Path,
    results: dict[str, Any],
    facts: Mapping[str, Facts],
    runs: Mapping[str, list[Path]],
    class_names: tuple[str, ...],
) -> None:
    """Write results.json and report.html into the run's folder. `runs`: for each name its folders, a seed each."""
    predicted = facts.get("predictions", {})
    judged = facts.get("teacher accuracy", {})
    predictions = {name: np.array(classes) for name, classes in predicted.items() if name != "labels"}
    if judged.get("predictions"):
        predictions["teacher"] = np.array(judged["predictions"])
    write_report(
        out,
        results,
        curves={name: [list(read_metrics(run)) for run in folders] for name, folders in runs.items()},
        teacher_probabilities_top=np.array(judged["confidence"]) if judged.get("confidence") else None,
        predictions=predictions,
        labels=np.array(predicted["labels"]) if predicted else None,
        class_names=class_names,
    )
    replace_bytes(out / "results.json", json.dumps(results, indent=1).encode() + b"\n")


def _teachers(recipe: Recipe, facts: Mapping[str, Facts], metrics: list[str]) -> dict[str, Any]:
    """Every teacher's numbers, by "teacher", or "teacher NAME" where there are several, and "ensemble" of all."""
    found = {}
    for name, config in recipe.teachers.items() or [("", recipe.teacher)]:
        judged = facts.get(f"teacher accuracy {name}".strip())
        if judged and config:
            numbers = {key: judged[key] for key in dict.fromkeys(("accuracy", "loss", *metrics)) if key in judged}
            found[f"teacher {name}".strip()] = {"model": config.model, "parameters": judged["parameters"]} | numbers
    if together := facts.get("teachers together"):
        found["ensemble"] = {"model": f"mean of {', '.join(recipe.teachers)}", **together}
    return found


def _compared(recipe: Recipe, facts: Mapping[str, Facts]) -> tuple[str, bool]:
    """The number that networks are compared by, and whether more of it is better."""
    if facts["check"]["positions"] is not None:
        return "perplexity", False
    if not recipe.metrics:
        return "accuracy", True
    first = find_metric(recipe.metrics[0])
    if first.keys:
        return first.keys[0], first.higher
    said = _measured(facts)  # a function of the user's own names its numbers itself
    return (said[0] if said else recipe.metrics[0]), first.higher


def _measured(facts: Mapping[str, Facts]) -> list[str]:
    """The names of all numbers that the fitted networks were judged by, in their order."""
    return list(dict.fromkeys(key for found in facts.values() for key in found.get("metrics", ())))


def _network(facts: Mapping[str, Facts], name: str) -> dict[str, Any]:
    """One network's numbers over its seeds, and what it costs."""
    seeds = [found for key, found in facts.items() if key.startswith(f"{name} seed ")]
    if not seeds:
        return {}
    table: dict[str, Any] = {
        "parameters": seeds[0]["parameters"],
        "steps": seeds[0]["steps"],
        "seconds": round(sum(found["seconds"] for found in seeds), 3),
    }
    for key in seeds[0]["metrics"]:
        if seeds[0].get(key) is not None:
            table[key] = summarise([found[key] for found in seeds])
    return table


def _speed(rates: Facts, name: str, slowest: float | None) -> dict[str, float]:
    """{"speedup"}: how many times as many samples a second as the (slowest) teacher, where both were timed."""
    return {"speedup": round(rates[name] / slowest, 3)} if slowest and name in rates else {}


def _store(path: Path) -> dict[str, Any]:
    facts = describe(path)
    fields, teacher = facts["fields"], facts["teacher"] or {}
    taught = {"logits", *teacher.get("taps", {}), *teacher.get("outputs", {})}
    return {
        "rows": facts["rows"],
        "bytes_per_row": facts["bytes_per_row"],
        "target_bytes_per_row": sum(
            f["bytes_per_row"] for name, f in fields.items() if name in taught or name.startswith("view")
        ),
        "bytes": facts["bytes"],
        "digest": facts["digest"],
        "format": facts["format"],
        "fields": fields,
        "fidelity": facts["facts"].get("fidelity", {}),
    }


def _grid(recipe: Recipe, students: Mapping[str, Student]) -> dict[str, Any]:
    axes = {
        key.split(",")[0].strip(): [value[0] if "," in key else value for value in values]
        for key, values in recipe.grid.items()
    }
    return {"axes": axes, "cells": dict(zip(students, map(list, itertools.product(*axes.values())), strict=True))}


def _environment() -> dict[str, Any]:
    return {
        "kdcache": version("kdcache"),
        "torch": version("torch"),
        "python": platform.python_version(),
        "machine": platform.machine(),
        "cores": os.cpu_count(),
    }
