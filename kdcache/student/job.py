"""One fit, decided before any network is built: its rows, its length, its identity."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from kdcache.config import ObjectiveConfig, TrainConfig
from kdcache.errors import UsageError
from kdcache.fingerprint import canonical
from kdcache.loader.views import View, check_view
from kdcache.metrics import check_options, find_metric
from kdcache.models import InputSpec, weights_digest
from kdcache.objectives import Objective, compose
from kdcache.store import StoredField
from kdcache.student.data import Data
from kdcache.student.metrics import Metrics
from kdcache.student.rows import Rows, choose_rows, evaluation_interval, planned_steps, steps_per_epoch
from kdcache.views import ViewsSpec

__all__ = ["Job", "check_augment", "check_fused", "check_together", "check_views", "chosen_view", "plan_job"]

# What changes how a fit is run, but not what comes out of it.
_NO_MATTER = {"seeds", "checkpoint_seconds", "memory_mib"}


@dataclass(frozen=True, eq=False)
class Job:
    """What stays the same while a fit runs. Steps and rows are of all processes together."""

    model: str
    args: dict[str, Any]
    out: Path
    data: Data
    rows: Rows
    objective: Objective
    train: TrainConfig
    spec: InputSpec
    seed: int
    steps: int
    epoch_steps: int
    evaluate_every: int
    identity: dict[str, Any]
    inputs: tuple[str, ...] = ("input",)
    metrics: tuple[str, ...] = ()
    view: View = None
    weights: Path | None = None
    metric_options: dict[str, Any] = field(default_factory=dict)

    @property
    def trained_rows(self) -> int:
        return int(self.rows.train.sum())

    @property
    def by_label(self) -> tuple[bool | None, ...]:
        """Which terms of the objective are means over labels, in sequences all; None: over the whole global batch."""
        whole = self.data.positions is not None
        return tuple(None if term.spec.together else term.labelled or whole for term in self.objective.terms)

    def batch_rows(self, step: int) -> int:
        """Rows of the global batch of the 0-based `step`: the batch size, or what is left at an epoch's end."""
        return min(self.train.batch_size, self.trained_rows - step % self.epoch_steps * self.train.batch_size)

    def record(self, metrics: Metrics | None, step: int, split: str, values: Mapping[str, Any]) -> None:
        """Add a row of metrics, in the process that writes them; its epoch counts looks at the held-out rows."""
        if metrics is not None:
            metrics.write(step, -(-step // self.evaluate_every), split, values)

    @property
    def cure(self) -> str:
        """What to do about a loss that is no longer finite."""
        fp32 = "" if self.train.precision == "fp32" else ', or set precision = "fp32"'
        clip = ", set train.clip_norm = 1.0" if self.train.clip_norm is None else ""
        return f"lower train.lr (now {self.train.lr:g}){clip}{fp32}"


def check_augment(train: TrainConfig) -> None:
    """UsageError where a fit on sequences of tokens would change images."""
    if train.augment:
        raise UsageError(
            f"train.augment = {list(train.augment)} changes images, and these rows are sequences of tokens; "
            "leave it out"
        )


def check_fused(objective: Objective) -> None:
    """UsageError for a term that a language model's fused last layer cannot give."""
    for term in objective.terms:
        if not (term.on_logits or term.taps):
            raise UsageError(
                f"objective {term.name}: it needs the whole batch's {', '.join(term.outputs)} at once, and those of a "
                "language model are never there together; take a loss of one position each, such as kd, or one on taps"
            )


def chosen_view(views: ViewsSpec | None, view: View, place: str) -> View:
    """The view that a fit sees: of a store with views another each epoch unless it asks for something else."""
    found: View = "cycle" if view is None and views is not None else view
    return check_view(found, views, place)


def check_views(
    objective: Objective,
    views: ViewsSpec | None,
    fields: Mapping[str, StoredField],
    view: View,
    train: TrainConfig,
    place: str,
) -> None:
    """UsageError where a fit on views would learn what is not so; `view` is the chosen one."""
    if view is None or views is None:
        return
    if views.mixes and (named := [term.name for term in objective.terms if "label" in term.fields]):
        raise UsageError(
            f"objective {named[0]}: it reads one label a row, and these views are mixed of two images: leave it "
            "out, or dump views without mixup and cutmix"
        )
    moved = views.config.crop or views.config.shift or views.config.flip
    placed = {
        name for name, field in fields.items() if name.startswith("boxes") or (name == "label" and field.array.shape)
    }
    if moved and (wrong := placed & set(objective.fields)):
        raise UsageError(
            f"{place}: these views move what is in the image, and the objective reads {min(wrong)}, which stays "
            "where it was; dump views without crop, shift and flip, or leave that term out"
        )
    if view == "all" and train.accumulate > 1:
        raise UsageError(
            f'view = "all" shows every row of a batch in {views.count} views, and train.accumulate = '
            f"{train.accumulate} would cut across them; set it to 1, or lower train.batch_size"
        )


def check_together(objective: Objective, train: TrainConfig) -> None:
    """UsageError where a loss that compares the rows of a batch would get too few, or part of them."""
    for term in objective.terms:
        if not term.spec.together:
            continue
        if train.accumulate > 1:
            raise UsageError(
                f"objective {term.name}: it compares the rows of a batch with each other, and train.accumulate = "
                f"{train.accumulate} would cut the batch; set it to 1"
            )
        if train.batch_size < 2 * term.spec.together:
            raise UsageError(
                f"objective {term.name}: it needs {term.spec.together} rows together, and the last batch of an epoch "
                f"may be half of train.batch_size = {train.batch_size}; set that to {2 * term.spec.together} or more"
            )


def plan_job(
    model: str,
    args: Mapping[str, Any],
    data: Data,
    out: Path,
    objective: Sequence[ObjectiveConfig],
    train: TrainConfig,
    seed: int,
    identity: Mapping[str, Any],
    *,
    labels_only_rows: bool | None,
    steps: int | None,
    evaluate_every: int | None,
    input_spec: InputSpec | None,
    inputs: tuple[str, ...] = ("input",),
    metrics: tuple[str, ...] = (),
    view: View = None,
    weights: Path | None = None,
    metric_options: Mapping[str, Any] | None = None,
) -> Job:
    """Decide a fit; the parameters are those of `fit`."""
    view = chosen_view(data.views, view, data.place)
    fields, facts = data.seen(view)
    composed = compose(objective, fields, data.outputs, facts)
    if data.positions is not None:
        check_augment(train)
        check_fused(composed)
    check_together(composed, train)
    check_views(composed, data.views, data.fields, view, train, data.place)
    check_options({name: find_metric(name) for name in metrics}, metric_options or {})
    rows = choose_rows(data, train, composed.needs_labels_only if labels_only_rows is None else labels_only_rows)
    count = int(rows.train.sum())
    epoch_steps = steps_per_epoch(count, train.batch_size)
    total = steps or planned_steps(train, count)
    every = evaluate_every or evaluation_interval(train, total, epoch_steps)
    spec = (input_spec or data.input_spec()) if inputs[0] == "input" else InputSpec()
    whole = {
        **identity,
        "model": model,
        "args": dict(args),
        "objective": [term.model_dump() for term in objective],
        "train": train.model_dump(mode="json", exclude=_NO_MATTER),
        "seed": seed,
        "steps": total,
        "evaluate_every": every,
        "rows": count,
        "input_spec": asdict(spec),
        "stores": data.digests,
    }
    if inputs != ("input",):
        whole["inputs"] = list(inputs)
    if view is not None:
        whole["view"] = view
    if weights is not None:
        whole["weights"] = weights_digest(weights)
    return Job(
        model,
        dict(args),
        out,
        data,
        rows,
        composed,
        train,
        spec,
        seed,
        total,
        epoch_steps,
        every,
        json.loads(canonical(whole)),
        inputs,
        metrics,
        view,
        weights,
        dict(metric_options or {}),
    )
