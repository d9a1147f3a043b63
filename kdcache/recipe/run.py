"""`run_recipe`: everything that a recipe names, from its source to results.json and report.html."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kdcache.config import Recipe, SourceConfig, TeacherConfig
from kdcache.errors import UsageError
from kdcache.files import replace_bytes
from kdcache.fingerprint import digest_of
from kdcache.recipe import stages
from kdcache.recipe.pool import Stage, Watcher, run_stages
from kdcache.recipe.preflight import check_recipe
from kdcache.recipe_students import Student, resolve_students, store_recipes

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
    teachers: dict[str | None, TeacherConfig] = dict(recipe.teachers.items())
    if recipe.teacher:
        teachers = {None: recipe.teacher}
    if not teachers and students:
        raise UsageError(
            f"{recipe.name}: names students but no [teacher]; add one, or use `kdcache train` with a store"
        )
    run = _Run(recipe, out, watcher, jobs)
    inputs, evaluation = out / "inputs", out / "eval"
    if teachers:
        run.together([Stage("check", check_recipe, (recipe, students))])
    plain = recipe.model_copy(update={"teacher": None, "teachers": {}, "fields": {}, "stores": {}, "views": None})
    first = [Stage("inputs", stages.dump_store, (plain, inputs, None), inputs / MANIFEST)]
    if recipe.eval_source:
        other = plain.model_copy(update={"source": recipe.eval_source, "eval_source": None})
        first.append(Stage("eval", stages.dump_store, (other, evaluation, None), evaluation / MANIFEST))
    labelled = {}  # where a teacher is fitted
    for name, teacher in teachers.items():
        labelled[name] = inputs
        if teacher.source:
            place = labelled[name] = out / _named("inputs of the teacher", name).replace(" ", "-")
            other = plain.model_copy(update={"source": teacher.source, "eval_source": None})
            first.append(Stage(_named("inputs of the teacher", name), stages.dump_store, (other, place, None),
                               place / MANIFEST))  # fmt: skip
    run.together(first)
    eval_store = evaluation if recipe.eval_source else None
    if not teachers:
        return run.facts["inputs"]

    sequences = run.facts["check"]["positions"] is not None
    weights = {name: teacher.weights for name, teacher in teachers.items()}
    fitted = []
    for name, teacher in teachers.items():
        if teacher.fit:
            place = out / "teachers" / name if name else out / "teacher"
            weights[name] = place / "model.safetensors"
            asked = recipe.model_copy(update={"stores": {}, "teachers": {}, "teacher": teacher})
            fitted.append(Stage(_named("teacher", name), stages.fit_teacher,
                                (asked, labelled[name], eval_store, place), weights[name]))  # fmt: skip
    run.together(fitted)
    variants = store_recipes(recipe)
    stores = {name: out / "stores" / name if name else out / "store" for name in variants}
    given = {name: weights[name if recipe.teachers else None] for name in variants}
    dumps = [
        Stage(_named("store", name), stages.dump_store, (variant, stores[name], given[name]), stores[name] / MANIFEST)
        for name, variant in variants.items()
    ]
    if sequences and eval_store:  # with the teacher's choice of each token, for agreement
        eval_store = out / "eval-teacher"
        variant = next(iter(variants.values()))
        chosen = (stages.evaluation_recipe(variant), eval_store, next(iter(given.values())))
        dumps.append(Stage("eval teacher", stages.dump_store, chosen, eval_store / MANIFEST))
    run.together(dumps)
    judged = []
    for name in teachers:
        variant = variants[name] if recipe.teachers else recipe.model_copy(update={"stores": {}})
        store = stores[name] if recipe.teachers else next(iter(stores.values()))
        judged.append(Stage(_named("teacher accuracy", name), stages.judge_teacher,
                            (variant, weights[name], store, eval_store)))  # fmt: skip
    if len(teachers) > 1 and eval_store and run.facts["check"]["classes"]:
        all_of_them = (recipe, list(weights.values()), [stores[name] for name in teachers], eval_store)
        judged.append(Stage("teachers together", stages.judge_teachers, all_of_them))
    run.together(judged)

    # A student alone learns from labels; where the source has none, from those that its teacher was fitted on.
    alone = inputs if run.facts["check"]["labelled"] else next(iter(labelled.values()))
    folders, baseline_of, fits = _fits(students, alone, stores, eval_store, out)
    for precision in dict.fromkeys(_precision(stage) for stage in fits):
        # Accelerate fixes the precision of a process once.
        run.together([stage for stage in fits if _precision(stage) == precision], reuse=True)
    if eval_store and run.facts["check"]["classes"]:
        shown = {name: runs[0] for name, runs in folders.items()}
        run.together([Stage("predictions", stages.predict_classes, (shown, eval_store))])
    if eval_store and not sequences:
        timed = {f"teacher {name}" if name else "teacher": path for name, path in weights.items() if path}
        timed |= {name: runs[0] / "model.safetensors" for name, runs in folders.items()}
        run.together([Stage("speed", stages.time_networks, (timed, eval_store))])

    from kdcache.recipe.results import collect, write_results
    from kdcache.store import read_plan

    results_path = out / "results.json"
    if run.fresh or not results_path.exists() or not (out / "report.html").exists():
        results = collect(recipe, students, baseline_of, run.facts, stores, command)
        plan = read_plan(next(iter(stores.values())))
        write_results(out, results, run.facts, folders, plan.class_names if plan else ())
    found: Facts = json.loads(results_path.read_text())
    return found


def _named(stage: str, name: str | None) -> str:
    return f"{stage} {name}" if name else stage


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
    names: dict[tuple[Any, ...], str] = {}
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
                    (student, seed, [inputs], [stores[one] for one in student.stores], eval_store, folder),
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
                (student, seed, [stores[one] for one in student.stores], eval_store, folder),
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
        every = [*([recipe.teacher] if recipe.teacher else []), *recipe.teachers.values()]
        sources = [recipe.source, recipe.eval_source, *(teacher.source for teacher in every)]
        self._files = [_stamp(_files(source)) for source in sources if source]
        self._files += [_stamp([teacher.weights]) for teacher in every if teacher.weights]
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
        found = {"model": value.model, "args": value.args, "train": train, "objective": terms}
        alone = [term.model_dump() for term in value.baseline]
        return found | {"inputs": value.inputs, "view": value.view, "baseline": alone, "metrics": value.metrics}
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
