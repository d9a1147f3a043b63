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
from kdcache.recipe_file import Student
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
    store: Path,
    command: str,
) -> dict[str, Any]:
    """The content of results.json. `facts` is by stage; `baseline_of` names each student's baseline stage."""
    results: dict[str, Any] = {"name": recipe.name, "command": command, "environment": _environment()}
    if judged := facts.get("teacher accuracy"):
        assert recipe.teacher is not None, "somebody was judged"
        results["teacher"] = {
            "model": recipe.teacher.model,
            "accuracy": judged.get("accuracy"),
            "parameters": judged["parameters"],
        }
    baselines = {name: _network(facts, name) for name in dict.fromkeys(baseline_of.values())}
    if baselines:
        results["baseline"] = baselines["baseline"]
    results["students"] = {}
    predicted = facts.get("predictions", {})
    teacher_classes = facts.get("teacher accuracy", {}).get("predictions")
    for name, student in students.items():
        found = _network(facts, f"student {name}")
        baseline = baselines.get(baseline_of.get(name, ""), {})
        if found.get("accuracy") and baseline.get("accuracy"):
            found["gain"] = paired(found["accuracy"]["seeds"], baseline["accuracy"]["seeds"])
            if baseline_of[name] != "baseline":
                found["baseline"] = baseline
        if teacher_classes and name in predicted:
            found["agreement"] = agreement(predicted[name], teacher_classes)
        found["model"], found["args"] = student.model, student.args
        found["objective"] = [term.model_dump(exclude_none=True) for term in student.objective]
        results["students"][name] = found
    results["seeds"] = list(next(iter(students.values())).train.seeds) if students else []
    results["store"] = _store(store)
    rates = [float(facts[key]["samples_per_second"]) for key in facts if key.startswith("student ")]
    results["throughput"] = {
        "dump_samples_per_second": facts.get("store", facts.get("inputs", {})).get("samples_per_second"),
        "train_samples_per_second": float(np.median(rates)) if rates else None,
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
        teacher_probabilities_top=np.array(judged["confidence"]) if judged else None,
        predictions=predictions,
        labels=np.array(predicted["labels"]) if predicted else None,
        class_names=class_names,
    )
    replace_bytes(out / "results.json", json.dumps(results, indent=1).encode() + b"\n")


def _network(facts: Mapping[str, Facts], name: str) -> dict[str, Any]:
    """One network's accuracy over its seeds, and what it costs."""
    seeds = [found for key, found in facts.items() if key.startswith(f"{name} seed ")]
    if not seeds:
        return {}
    table: dict[str, Any] = {
        "parameters": seeds[0]["parameters"],
        "steps": seeds[0]["steps"],
        "seconds": round(sum(found["seconds"] for found in seeds), 3),
    }
    if seeds[0]["accuracy"] is not None:
        table["accuracy"] = summarise([found["accuracy"] for found in seeds])
    return table


def _store(path: Path) -> dict[str, Any]:
    facts = describe(path)
    plain = {"id", "input", "label"}
    fields = facts["fields"]
    return {
        "rows": facts["rows"],
        "bytes_per_row": facts["bytes_per_row"],
        "target_bytes_per_row": sum(f["bytes_per_row"] for name, f in fields.items() if name not in plain),
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
