"""`run_recipe`: everything that a recipe names, from its source to results.json and report.html."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kdcache.config import Recipe, SourceConfig, TrainConfig
from kdcache.errors import UsageError
from kdcache.files import replace_bytes
from kdcache.fingerprint import digest_of
from kdcache.recipe import stages
from kdcache.recipe.pool import Stage, Watcher, run_stages
from kdcache.recipe.preflight import check_recipe
from kdcache.recipe_file import Student, resolve_students, store_recipes

__all__ = ["run_recipe"]

Facts = dict[str, Any]
MANIFEST, RESULT = "manifest.json", "result.json"


def run_recipe(recipe: Recipe, out: Path, watcher: Watcher, *, jobs: int | None = None, command: str = "") -> Facts:
    """Run what a recipe names into the folder `out` and return the content of results.json.

    Stages: inputs store, evaluation store, teacher, store (or each of [stores]), baselines and students over their
    seeds, results. A stage that is done for the same recipe is skipped; one that was interrupted goes on. `jobs` stages
    run at a time (default: one on a GPU, else one for each core).
    """
    students = resolve_students(recipe)
    if recipe.teacher is None and students:
        raise UsageError(
            f"{recipe.name}: names students but no [teacher]; add one, or use `kdcache train` with a store"
        )
    run = _Run(recipe, out, watcher, jobs)
    inputs, evaluation = out / "inputs", out / "eval"
    if recipe.teacher:
        run.together([Stage("check", check_recipe, (recipe, students))])
    plain = recipe.model_copy(update={"teacher": None, "fields": {}, "stores": {}})
    first = [Stage("inputs", stages.dump_store, (plain, inputs, None), inputs / MANIFEST)]
    if recipe.eval_source:
        other = plain.model_copy(update={"source": recipe.eval_source, "eval_source": None})
        first.append(Stage("eval", stages.dump_store, (other, evaluation, None), evaluation / MANIFEST))
    run.together(first)
    eval_store = evaluation if recipe.eval_source else None
    if recipe.teacher is None:
        return run.facts["inputs"]

    weights = recipe.teacher.weights
    sequences = run.facts["check"]["positions"] is not None
    if recipe.teacher.fit:
        weights = out / "teacher" / "model.safetensors"
        asked = recipe.model_copy(update={"stores": {}})
        run.together([Stage("teacher", stages.fit_teacher, (asked, inputs, eval_store, out / "teacher"), weights)])
    stores = {name: out / "stores" / name if name else out / "store" for name in store_recipes(recipe)}
    dumps = [
        Stage(f"store {name}" if name else "store", stages.dump_store, (variant, stores[name], weights),
              stores[name] / MANIFEST)
        for name, variant in store_recipes(recipe).items()
    ]  # fmt: skip
    if sequences and eval_store:  # with the teacher's choice of each token, for agreement
        eval_store = out / "eval-teacher"
        chosen = (stages.evaluation_recipe(recipe), eval_store, weights)
        dumps.append(Stage("eval teacher", stages.dump_store, chosen, eval_store / MANIFEST))
    run.together(dumps)
    judged = (recipe.model_copy(update={"stores": {}}), weights, next(iter(stores.values())), eval_store)
    run.together([Stage("teacher accuracy", stages.judge_teacher, judged)])

    folders, baseline_of, fits = _fits(students, inputs, stores, eval_store, out)
    for precision in dict.fromkeys(_precision(stage) for stage in fits):
        # Accelerate fixes the precision of a process once.
        run.together([stage for stage in fits if _precision(stage) == precision], reuse=True)
    if eval_store and not sequences:
        shown = {name: runs[0] for name, runs in folders.items()}
        run.together([Stage("predictions", stages.predict_classes, (shown, eval_store))])

    from kdcache.recipe.results import collect, write_results
    from kdcache.store import read_plan

    results_path = out / "results.json"
    if run.fresh or not results_path.exists() or not (out / "report.html").exists():
        results = collect(recipe, students, baseline_of, run.facts, stores, command)
        plan = read_plan(next(iter(stores.values())))
        write_results(out, results, run.facts, folders, plan.class_names if plan else ())
    found: Facts = json.loads(results_path.read_text())
    return found


def _fits(
    students: Mapping[str, Student],
    inputs: Path,
    stores: Mapping[str | None, Path],
    eval_store: Path | None,
    out: Path,
) -> tuple[dict[str, list[Path]], dict[str, str], list[Stage]]:
    """Every fit that is left, the folders of each network, and which baseline each student is held against.

    Students of one network and one [train] share a baseline; the first is called just that.
    """
    names: dict[tuple[str, str, TrainConfig, bool], str] = {}
    baseline_of, folders, fits = {}, {}, []
    for name, student in students.items():
        key = stages.baseline_key(student)
        seeds = student.train.seeds
        if key not in names:
            baseline = names[key] = f"baseline-{name}" if names else "baseline"
            folders[baseline] = [out / baseline / f"seed-{seed}" for seed in seeds]
            fits += [
                Stage(
                    f"{baseline} seed {seed}",
                    stages.fit_baseline,
                    (student, seed, [inputs], [stores[student.store]], eval_store, folder),
                    folder / RESULT,
                )
                for seed, folder in zip(seeds, folders[baseline], strict=True)
            ]
        baseline_of[name] = names[key]
    for name, student in students.items():
        folders[name] = [out / "students" / name / f"seed-{seed}" for seed in student.train.seeds]
        fits += [
            Stage(
                f"student {name} seed {seed}",
                stages.fit_student,
                (student, seed, [stores[student.store]], eval_store, folder),
                folder / RESULT,
            )
            for seed, folder in zip(student.train.seeds, folders[name], strict=True)
        ]
    return folders, baseline_of, fits


def _precision(fit: Stage) -> str:
    student: Student = fit.args[0]
    return student.train.precision


class _Run:
    """Stages with a memory: facts of a finished stage are kept beside the run, with a digest of what was asked."""

    def __init__(self, recipe: Recipe, out: Path, watcher: Watcher, jobs: int | None) -> None:
        self._out, self._watcher, self._jobs = out, watcher, jobs
        self._files = [_stamp(_files(source)) for source in (recipe.source, recipe.eval_source) if source]
        if recipe.teacher and recipe.teacher.weights:
            self._files.append(_stamp([recipe.teacher.weights]))
        self.facts: dict[str, Facts] = {}
        self.fresh = False

    def together(self, wanted: list[Stage], reuse: bool = False) -> None:
        """Run those stages that are not done yet, several at a time; their facts end in `facts`."""
        left = []
        for stage in wanted:
            if (found := self._remembered(stage)) is None:
                left.append(stage)
            else:
                self.facts[stage.name] = found
                self._watcher.ended(stage.name, found, True)

        def done(stage: Stage, facts: Facts) -> None:
            self.facts[stage.name] = facts
            content = json.dumps({"asked": self._asked(stage), "facts": facts}).encode()
            replace_bytes(self._path(stage), content)
            self._watcher.ended(stage.name, facts, False)

        if left:
            self.fresh = True
            self._jobs = self._jobs or _default_jobs()
            run_stages(left, min(self._jobs, len(left)), self._watcher, done, reuse)
            self.facts = {stage.name: self.facts[stage.name] for stage in wanted} | self.facts

    def _path(self, stage: Stage) -> Path:
        return self._out / "stages" / f"{stage.name.replace(' ', '-')}.json"

    def _remembered(self, stage: Stage) -> Facts | None:
        if stage.leaves and not stage.leaves.exists():
            return None
        try:
            table = json.loads(self._path(stage).read_bytes())
            facts: Facts = table["facts"]
            return facts if table["asked"] == self._asked(stage) else None
        except (OSError, ValueError, KeyError, TypeError):
            return None  # whatever the stage left behind it goes on from, or refuses, itself

    def _asked(self, stage: Stage) -> str:
        return digest_of([self._files, [_plain(arg) for arg in stage.args]])


def _plain(value: Any) -> Any:
    """An argument of a stage as JSON."""
    if isinstance(value, Recipe):
        # What is fitted later does not change a store or a teacher.
        return value.model_dump(mode="json", exclude={"student", "students", "objective", "grid", "train"})
    if isinstance(value, Student):
        train = value.train.model_dump(mode="json", exclude={"seeds"})
        terms = [term.model_dump() for term in value.objective]
        return {"model": value.model, "args": value.args, "train": train, "objective": terms}
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def _files(source: SourceConfig) -> list[Path]:
    return [path for path in (source.images, source.labels, source.path, *source.files) if path is not None]


def _stamp(paths: list[Path]) -> Any:
    """Size and time of the files that a recipe names, so that an edited file is looked at again."""
    return [[str(path), path.stat().st_size, path.stat().st_mtime_ns] for path in paths if path.exists()]


def _default_jobs() -> int:
    import torch

    return 1 if torch.cuda.is_available() else os.cpu_count() or 1
