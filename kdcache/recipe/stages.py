"""The stages of a run. Each is called in a process of its own, so what one imports no other has loaded.

Every stage goes on from where it was interrupted, returns at once if its work is done, and gives back facts as JSON.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kdcache.config import FieldConfig, ObjectiveConfig, Recipe
from kdcache.recipe.watch import DumpWatch, FitWatch, Report
from kdcache.recipe_students import HARD_LABELS, Student

__all__ = [
    "dump_store",
    "evaluation_recipe",
    "fit_baseline",
    "fit_student",
    "fit_teacher",
    "judge_teacher",
    "judge_teachers",
    "predict_classes",
    "time_networks",
]

Facts = dict[str, Any]


def dump_store(report: Report, recipe: Recipe, out: Path, weights: Path | None) -> Facts:
    """Write a store; its rows, bytes and digest, and how many samples a second went through in this call."""
    from kdcache.teacher import dump

    result = dump(recipe, out, weights=weights, progress=DumpWatch(report))
    return {
        "rows": result.manifest.rows,
        "bytes": result.manifest.data_bytes,
        "digest": result.manifest.digest,
        "dumped_rows": result.rows,
        "seconds": round(result.seconds, 3),
        "samples_per_second": round(result.rows / result.seconds, 1) if result.rows else None,
    }


def evaluation_recipe(recipe: Recipe) -> Recipe:
    """What writes the evaluation rows of sequences with the teacher's likeliest class of each position, no taps."""
    assert recipe.teacher is not None, "only called for a recipe with a teacher"
    best = FieldConfig(codec="topk", k=1)
    changes = {
        "source": recipe.eval_source,
        "eval_source": None,
        "stores": {},
        "fields": {"logits": best},
        "teacher": recipe.teacher.model_copy(update={"taps": {}, "outputs": {}}),
    }
    return recipe.model_copy(update=changes)


def fit_teacher(report: Report, recipe: Recipe, inputs: Path, eval_store: Path | None, out: Path) -> Facts:
    """Fit the teacher on the inputs store, as `teacher.fit` and `teacher.objective` say."""
    from kdcache.student import fit

    teacher = recipe.teacher
    train = teacher.fit if teacher else None
    assert teacher, "only called for a recipe with a teacher"
    assert train, "only called for a teacher that is fitted"
    result = fit(
        teacher.model,
        teacher.args,
        [inputs],
        out,
        objective=teacher.objective or recipe.baseline or HARD_LABELS,
        train=train,
        seed=train.seeds[0],
        identity={"role": "teacher"},
        eval_store=eval_store,
        inputs=teacher.inputs,
        metrics=recipe.metrics,
        metric_options=recipe.metric_options,
        progress=FitWatch(report),
    )
    return _facts(result)


def judge_teacher(report: Report, recipe: Recipe, weights: Path | None, store: Path, eval_store: Path | None) -> Facts:
    """The teacher's metrics and classes on the evaluation rows, and its confidence on those of the store."""
    from kdcache.teacher.judge import judge

    assert recipe.teacher is not None, "only called for a recipe with a teacher"
    return judge(recipe.teacher, weights, store, eval_store, recipe.metrics, recipe.metric_options)


def judge_teachers(
    report: Report, recipe: Recipe, weights: list[Path | None], stores: list[Path], eval_store: Path
) -> Facts:
    """The metrics of the recipe's [teachers] together, the mean of their probabilities."""
    from kdcache.teacher.together import judge_together

    teachers = list(recipe.teachers.values())
    return judge_together(teachers, weights, stores, eval_store, recipe.metrics, recipe.metric_options)


def fit_baseline(
    report: Report,
    student: Student,
    seed: int,
    inputs: list[Path],
    stores: list[Path],
    eval_store: Path | None,
    out: Path,
    resume: bool = True,
) -> Facts:
    """Fit a student's network alone, on labels or what the recipe's [[baseline]] names: same seed and order, as many
    steps and looks as with the teacher."""
    from kdcache.student import planned_steps, rows_used
    from kdcache.student.rows import evaluation_interval, steps_per_epoch

    rows = rows_used(stores, student.objective, student.train)
    steps = planned_steps(student.train, rows)
    every = evaluation_interval(student.train, steps, steps_per_epoch(rows, student.train.batch_size))
    return _fit(
        report,
        student,
        seed,
        inputs,
        eval_store,
        out,
        resume,
        "baseline",
        student.baseline,
        steps=steps,
        evaluate_every=every,
    )


def fit_student(
    report: Report,
    student: Student,
    seed: int,
    stores: list[Path],
    eval_store: Path | None,
    out: Path,
    resume: bool = True,
) -> Facts:
    """Fit a student from the store alone."""
    return _fit(report, student, seed, stores, eval_store, out, resume, "student", student.objective, view=student.view)


def _fit(
    report: Report,
    student: Student,
    seed: int,
    stores: list[Path],
    eval_store: Path | None,
    out: Path,
    resume: bool,
    role: str,
    objective: Sequence[ObjectiveConfig],
    steps: int | None = None,
    evaluate_every: int | None = None,
    view: Any = None,
) -> Facts:
    from kdcache.student import fit

    result = fit(
        student.model,
        student.args,
        stores,
        out,
        objective=objective,
        train=student.train,
        seed=seed,
        identity={"role": role},
        eval_store=eval_store,
        resume=resume,
        steps=steps,
        evaluate_every=evaluate_every,
        inputs=student.inputs,
        weights=student.weights,
        view=view,
        metrics=student.metrics,
        metric_options=student.metric_options,
        progress=FitWatch(report),
    )
    return _facts(result)


def predict_classes(report: Report, runs: dict[str, Path], eval_store: Path) -> Facts:
    """{"labels": [...], name: [...]}: the labels of the evaluation rows and the class each run's network gives them."""
    import torch

    from kdcache.models import load_model
    from kdcache.store import open_store
    from kdcache.student import predict

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with open_store(eval_store) as reader:
        found = {"labels": reader.read_column("label").tolist()}
        for name, run in runs.items():
            # Our own run's folder: it may name the user's own factory.
            model, info = load_model(run / "model.safetensors", allow_import=True)
            found[name] = predict(model.to(device), (reader,), info, device).tolist()
    return found


def time_networks(report: Report, weights: dict[str, Path], eval_store: Path) -> Facts:
    """{name: samples a second of its forward pass in evaluation mode}, each on the same rows (see `forward_rates`)."""
    from kdcache.student.speed import forward_rates

    return dict(forward_rates(weights, eval_store))


def _facts(result: Any) -> Facts:
    found = {key: value for key, value in (result.eval or {}).items() if key != "store"}
    return {
        "accuracy": None,
        "loss": None,
        **found,
        "metrics": list(found),
        "val": result.val,
        "parameters": result.parameters,
        "steps": result.steps,
        "stopped_early": result.stopped_early,
        "seconds": result.seconds,
        "samples_per_second": result.samples_per_second,
    }


def baseline_key(student: Student) -> tuple[Any, ...]:
    """Students that share this share their baseline: one network, one [train], as many rows and so as many steps."""
    labels_only = all(term.name == "ce" for term in student.objective)
    network = student.model, repr(sorted(student.args.items())), student.inputs, student.weights
    return *network, student.train, labels_only
