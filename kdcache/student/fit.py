"""The one fit: for teachers, baselines and students alike, from a store to `model.safetensors`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdcache.config import ObjectiveConfig, TrainConfig
from kdcache.errors import CheckpointError
from kdcache.interrupt import stop_requests
from kdcache.student.folder import FitResult, has_begun, only_one, read_result
from kdcache.student.progress import Progress

if TYPE_CHECKING:
    from kdcache.loader.views import View
    from kdcache.models import InputSpec

__all__ = ["fit"]


def fit(
    model: str,
    args: Mapping[str, Any],
    stores: Sequence[Path],
    out: Path,
    *,
    objective: Sequence[ObjectiveConfig],
    train: TrainConfig,
    seed: int,
    identity: Mapping[str, Any],
    labels_only_rows: bool | None = None,
    steps: int | None = None,
    evaluate_every: int | None = None,
    eval_store: Path | None = None,
    input_spec: InputSpec | None = None,
    inputs: Sequence[str] = ("input",),
    weights: Path | None = None,
    view: View = None,
    metrics: Sequence[str] = (),
    metric_options: Mapping[str, Any] | None = None,
    resume: bool = True,
    progress: Progress | None = None,
) -> FitResult:
    """Fit the network `model` (a reference, built with `args`) on aligned `stores` and leave it in the folder `out`.

    `steps` overrides the recipe's length: a baseline takes as many as its student. `evaluate_every` (steps) says how
    often the held-out rows are looked at, by default once an epoch (see `evaluation_interval`). `labels_only_rows`: use
    labelled rows only, by default if the objective reads nothing but labels. `input_spec` replaces the standardisation
    that the store's plan states. `inputs` are the fields that the network is given; it begins with what fits of the
    file `weights`; `view` is which of a store's views it sees (see `StreamingLoader`); `metrics` is what it is judged
    by (`kdcache.metrics`; by default accuracy, or perplexity of tokens). `identity` is whatever else makes this fit
    another one; it is joined with the model, the objective, the training, the seed and the stores' digests.

    A finished fit of the same identity is returned at once; an unfinished one goes on from its newest checkpoint, on a
    CPU bit for bit as if it had never stopped. Raises CheckpointError for a folder of another identity, DataError when
    the loss is no longer finite, Interrupted after SIGINT or SIGTERM. Seeds torch's global generator.
    """
    # Imported here, so that the package's door can hold this function without waiting for torch.
    import numpy as np
    import torch

    from kdcache.loader.views import check_replay, views_of
    from kdcache.student.begin import build_student
    from kdcache.student.checkpoint import newest_checkpoint
    from kdcache.student.data import open_data
    from kdcache.student.evaluate import check_evaluable
    from kdcache.student.finish import evaluated, finish
    from kdcache.student.job import plan_job
    from kdcache.student.loop import open_loaders, run_loop
    from kdcache.student.metrics import Metrics
    from kdcache.student.module import Fitted, student_shapes
    from kdcache.student.optimizer import build_optimizers
    from kdcache.student.processes import open_accelerator
    from kdcache.student.state import FitState
    from kdcache.student.stopping import Stopping

    progress = progress or Progress()
    with ExitStack() as stack:
        data = stack.enter_context(open_data(stores))
        job = plan_job(
            model,
            args,
            data,
            out,
            objective,
            train,
            seed,
            identity,
            labels_only_rows=labels_only_rows,
            steps=steps,
            evaluate_every=evaluate_every,
            input_spec=input_spec,
            inputs=tuple(inputs),
            metrics=tuple(metrics),
            view=view,
            weights=weights,
            metric_options=metric_options,
        )
        if (done := read_result(out, job.identity)) is not None:
            return evaluated(done, job, eval_store)
        if eval_store is not None:  # found out now, not when the fit is done
            with open_data([eval_store]) as other:
                check_evaluable(
                    list(zip(job.inputs, data.inputs(job.inputs), strict=True)),
                    data.outputs,
                    data.tokenizer,
                    other,
                    out,
                    job.metrics,
                )

        accelerator = open_accelerator(train.precision)
        stack.enter_context(only_one(out, accelerator.is_main_process))
        if not resume and has_begun(out):
            raise CheckpointError(f"{out}: holds a fit already; go on with it (--resume), or choose another folder")

        if data.views is not None and job.view is not None:
            for shown in {view for epoch in range(data.views.count) for view in views_of(job.view, data.views, epoch)}:
                check_replay(data.readers[0], shown)
        torch.manual_seed(seed)
        network = build_student(job)
        shapes = student_shapes(network, job.objective.taps, data.inputs(job.inputs))
        adapters = job.objective.adapters(shapes, np.sort(data.ids))
        fitted = Fitted(
            network,
            adapters,
            job.objective,
            job.spec,
            stack,
            job.inputs,
            data.positions is not None,
            data.views if job.view is not None else None,
        )
        wrapped = accelerator.prepare(fitted)
        loader, held = open_loaders(job, accelerator, stack)
        # Not prepared: Accelerate's wrapper looks for an optional library twice in every step, 0.1 ms.
        state = FitState(
            fitted,
            build_optimizers(train, fitted, adapters),
            accelerator.scaler,
            loader,
            Stopping(train.early_stopping),
        )
        silent = progress if accelerator.is_main_process else Progress()
        if (checkpoint := newest_checkpoint(out, job.identity, silent.said)) is not None:
            state.restore(checkpoint, accelerator.device)
        accelerator.wait_for_everyone()

        log = stack.enter_context(Metrics(out, state.step, silent)) if accelerator.is_main_process else None
        flag = stack.enter_context(stop_requests())
        run_loop(job, state, wrapped, held, accelerator, log, silent, flag)
        result = finish(job, state, eval_store, accelerator, log)
        silent.finished(state.step, state.seconds)
        return result
