"""The one fit: for teachers, baselines and students alike, from a store to `model.safetensors`."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kdcache.config import ObjectiveConfig, TrainConfig
from kdcache.errors import CheckpointError, DataError, Interrupted
from kdcache.interrupt import StopFlag, stop_requests
from kdcache.keyed import keyed_hash
from kdcache.loader import StreamingLoader
from kdcache.models import InputSpec, WeightsInfo, build_model, save_weights
from kdcache.student.augment import augment, augment_generator
from kdcache.student.checkpoint import newest_checkpoint, write_checkpoint
from kdcache.student.data import open_data
from kdcache.student.evaluate import evaluate, evaluate_run, evaluate_store
from kdcache.student.folder import FitResult, has_begun, only_one, read_result, write_result
from kdcache.student.job import Job, plan_job
from kdcache.student.metrics import Metrics
from kdcache.student.module import Batch, Fitted, split_batch, tap_shapes
from kdcache.student.optimizer import build_optimizer
from kdcache.student.processes import asked_to_stop, open_accelerator, same_buffers, seed_device
from kdcache.student.progress import Progress
from kdcache.student.rows import remainder
from kdcache.student.schedule import rate_factor
from kdcache.student.state import FitState
from kdcache.student.stopping import Stopping

__all__ = ["fit"]

LOG_STEPS = 100  # metrics get a row at least so often


def fit(
    model: str, args: Mapping[str, Any], stores: Sequence[Path], out: Path, *, objective: Sequence[ObjectiveConfig],
    train: TrainConfig, seed: int, identity: Mapping[str, Any], labels_only_rows: bool | None = None,
    steps: int | None = None, evaluate_every: int | None = None, eval_store: Path | None = None,
    input_spec: InputSpec | None = None, resume: bool = True, progress: Progress | None = None,
) -> FitResult:
    """Fit the network `model` (a reference, built with `args`) on aligned `stores` and leave it in the folder `out`.

    `steps` overrides the recipe's length: a baseline takes as many as its student. `evaluate_every` (steps) says how
    often the held-out rows are looked at, by default once an epoch (see `evaluation_interval`). `labels_only_rows`: use
    labelled rows only, by default if the objective reads nothing but labels. `input_spec` replaces the standardisation
    that the store's plan states. `identity` is whatever else makes this fit another one; it is joined with the model,
    the objective, the training, the seed and the stores' digests.

    A finished fit of the same identity is returned at once; an unfinished one goes on from its newest checkpoint, on a
    CPU bit for bit as if it had never stopped. Raises CheckpointError for a folder of another identity, DataError when
    the loss is no longer finite, Interrupted after SIGINT or SIGTERM. Seeds torch's global generator.
    """
    progress = progress or Progress()
    with ExitStack() as stack:
        data = stack.enter_context(open_data(stores))
        job = plan_job(model, args, data, out, objective, train, seed, identity, labels_only_rows=labels_only_rows,
                       steps=steps, evaluate_every=evaluate_every, input_spec=input_spec)
        if (done := read_result(out, job.identity)) is not None:
            return _evaluated(done, job, eval_store)

        accelerator = open_accelerator(train.precision)
        stack.enter_context(only_one(out, accelerator.is_main_process))
        if not resume and has_begun(out):
            raise CheckpointError(f"{out}: holds a fit already; go on with it (--resume), or choose another folder")

        torch.manual_seed(seed)
        network = build_model(model, args, input=data.input, outputs=data.classes)
        adapters = job.objective.adapters(tap_shapes(network, job.objective.taps, data.input))
        fitted = Fitted(network, adapters, job.objective, job.spec, stack)
        wrapped = accelerator.prepare(fitted)
        loader, held = _loaders(job, accelerator, stack)
        # Not prepared: Accelerate's wrapper looks for an optional library twice in every step, 0.1 ms.
        state = FitState(fitted, build_optimizer(train, fitted.parameters()), accelerator.scaler, loader,
                         Stopping(train.early_stopping))
        silent = progress if accelerator.is_main_process else Progress()
        if (checkpoint := newest_checkpoint(out, job.identity, silent.said)) is not None:
            state.restore(checkpoint, accelerator.device)
        accelerator.wait_for_everyone()

        metrics = stack.enter_context(Metrics(out, state.step, silent)) if accelerator.is_main_process else None
        flag = stack.enter_context(stop_requests())
        _loop(job, state, wrapped, held, accelerator, metrics, silent, flag)
        result = _finish(job, state, eval_store, accelerator, metrics)
        silent.finished(state.step, state.seconds)
        return result


def _loop(job: Job, state: FitState, wrapped: Any, held: StreamingLoader | None, accelerator: Any,
          metrics: Metrics | None, progress: Progress, flag: StopFlag) -> None:
    """Take steps until all are done or early stopping has seen enough."""
    train, device, rank = job.train, accelerator.device, accelerator.process_index
    dropout = keyed_hash(f"kdcache dropout {job.seed} {rank}", np.arange(job.steps))
    before, began = state.seconds, time.monotonic()
    saved = began
    progress.started(str(job.out), state.step, job.steps, job.trained_rows)
    state.fitted.train()
    batches = _endless(state.loader)
    while state.step < job.steps and not state.stopping.stopped:
        batch = next(batches)
        rate = train.lr * rate_factor(train, state.step, job.steps)
        for group in state.optimizer.param_groups:
            group["lr"] = rate
        if train.augment:
            batch["input"] = augment(batch["input"], train.augment, augment_generator(job.seed, state.step, rank))
        seed_device(int(dropout[state.step]), device)
        global_rows = job.batch_rows(state.step)
        loss, terms = _backward(wrapped, batch, train.accumulate, accelerator, global_rows)
        _update(state, train.clip_norm)
        state.step += 1
        state.samples += global_rows
        state.losses.add(len(batch["id"]), loss, terms)
        progress.stepped(state.step)

        evaluates = state.step % job.evaluate_every == 0 or state.step == job.steps
        if evaluates or len(state.losses) == LOG_STEPS:
            means = state.losses.take(state.step, f"{job.out}: ", job.cure, accelerator.reduce)
            _record(metrics, job, state.step, "train", {**means, "lr": rate})
        if evaluates and held is not None:
            val = _validate(job, state, held, accelerator)
            _record(metrics, job, state.step, "val", val)
            if state.stopping.update(state.step, val):
                state.keep_best()

        stop = asked_to_stop(flag, accelerator, state.step)
        now = time.monotonic()
        state.seconds = before + now - began
        ended = state.step == job.steps or state.stopping.stopped
        if stop or ended or now - saved >= train.checkpoint_seconds:
            state.losses.check(state.step, f"{job.out}: ", job.cure)
            if accelerator.is_main_process:
                write_checkpoint(job.out, job.identity, state.checkpoint())
            saved = time.monotonic()
        if stop and not ended:
            raise Interrupted(f"{job.out}: stopped by {flag.name or 'another process'} after step {state.step} of "
                              f"{job.steps}; run the same command again to go on")


def _loaders(job: Job, accelerator: Any, stack: ExitStack) -> tuple[StreamingLoader, StreamingLoader | None]:
    """The training rows in the order of the seed, and the held-out rows in the order of the store."""
    train, fields = job.train, ("input", *job.objective.fields)
    place = {"world_size": accelerator.num_processes, "rank": accelerator.process_index,
             "device": str(accelerator.device)}
    budget = train.memory_mib << 20
    budget_held = 0 if job.rows.held is None else budget // 4
    loader = stack.enter_context(closing(StreamingLoader(
        job.data.readers, train.batch_size, seed=job.seed, lanes=train.lanes, fields=fields, rows=job.rows.train,
        remainder=remainder(job.trained_rows, train.batch_size), memory_budget=budget - budget_held, **place)))
    if job.rows.held is None:
        return loader, None
    label = ("label",) if job.data.has_labels else ()
    held = stack.enter_context(closing(StreamingLoader(
        job.data.readers, train.batch_size, shuffle=False, fields=tuple(dict.fromkeys(fields + label)),
        rows=job.rows.held, memory_budget=budget_held, **place)))
    return loader, held


def _endless(loader: StreamingLoader) -> Iterator[dict[str, Any]]:
    """Batches from where the loader stands, epoch after epoch: it begins the next one by itself."""
    while True:
        yield from loader


def _backward(wrapped: Any, batch: Batch, parts: int, accelerator: Any,
              global_rows: int) -> tuple[Tensor, dict[str, Tensor]]:
    """Gradients of the global batch's mean loss, from `parts` micro-batches; this process's mean loss and terms.

    Gradients are averaged over processes as if all had equally many rows, so each loss is weighted with what it has.
    """
    rows = len(batch["id"])
    micro = split_batch(batch, parts)
    losses: list[Tensor] = []
    terms: list[dict[str, Tensor]] = []
    shares = [len(part["id"]) / rows for part in micro]
    for number, (part, share) in enumerate(zip(micro, shares, strict=True), 1):
        with nullcontext() if number == len(micro) else accelerator.no_sync(wrapped):
            loss, values, _ = wrapped(part)
            weight = share * rows * accelerator.num_processes / global_rows
            scaled = loss if weight == 1.0 else loss * weight
            (scaled if accelerator.scaler is None else accelerator.scaler.scale(scaled)).backward()
        losses.append(loss.detach())
        terms.append(values)
    if len(micro) == 1:
        return losses[0], terms[0]
    total = torch.stack([loss * share for loss, share in zip(losses, shares, strict=True)]).sum()
    return total, {name: torch.stack([values[name] * share for values, share in zip(terms, shares, strict=True)]).sum()
                   for name in terms[0]}


def _update(state: FitState, clip_norm: float | None) -> None:
    """One step of the optimiser, gradients clipped to a norm first if asked."""
    if clip_norm is not None:
        if state.scaler is not None:
            state.scaler.unscale_(state.optimizer)
        torch.nn.utils.clip_grad_norm_(state.fitted.parameters(), clip_norm)
    if state.scaler is None:
        state.optimizer.step()
    else:
        state.scaler.step(state.optimizer)
        state.scaler.update()
    state.optimizer.zero_grad(set_to_none=True)


def _validate(job: Job, state: FitState, held: StreamingLoader, accelerator: Any) -> dict[str, float]:
    """The objective over the held-out rows, {"loss", "accuracy"?}, the same in every process."""
    same_buffers(state.fitted, accelerator)
    state.fitted.eval()

    def forward(batch: Batch) -> tuple[Tensor, Tensor]:
        loss, _, logits = state.fitted(batch)
        return logits, loss

    found = evaluate(forward, held, accelerator.device, accelerator.reduce)
    state.fitted.train()
    if found.objective is None or not math.isfinite(found.objective):
        raise DataError(f"{job.out}: the loss over the held-out rows became {found.objective} at step {state.step}; "
                        f"{job.cure}")
    return {"loss": found.objective} | ({} if found.accuracy is None else {"accuracy": found.accuracy})


def _record(metrics: Metrics | None, job: Job, step: int, split: str, values: Mapping[str, Any]) -> None:
    if metrics is not None:
        metrics.write(step, -(-step // job.evaluate_every), split, values)


def _finish(job: Job, state: FitState, eval_store: Path | None, accelerator: Any, metrics: Metrics | None) -> FitResult:
    """Write the weights, evaluate them, and say last that the fit is done."""
    network, spec = state.fitted.model, job.spec
    kept = state.step if state.best is None else state.stopping.best_step
    if state.best is not None:
        network.load_state_dict(state.best)
    same_buffers(network, accelerator)
    parameters = sum(parameter.numel() for parameter in network.parameters())
    result = FitResult(
        job.identity, job.data.digests, job.seed, state.step, round(state.step / job.epoch_steps, 3), parameters,
        state.stopping.stopped, kept, state.stopping.val, None, round(state.seconds, 3),
        round(state.samples / max(state.seconds, 1e-9), 1))
    if accelerator.is_main_process:
        extra = {"stores": job.data.digests, "seed": job.seed, "step": kept}
        info = WeightsInfo(job.model, job.args, job.data.input, job.data.classes, spec, extra)
        save_weights(job.out / "model.safetensors", network, info)
        if eval_store is not None:
            with open_data([eval_store]) as other:
                found = evaluate_store(network, info, other, accelerator.device, job.out)
            _record(metrics, job, state.step, "eval", {"loss": found.loss, "accuracy": found.accuracy})
            result = replace(result, eval={"accuracy": found.accuracy, "loss": found.loss, "store": other.digests[0]})
        write_result(job.out, result)
    accelerator.wait_for_everyone()
    return result


def _evaluated(done: FitResult, job: Job, eval_store: Path | None) -> FitResult:
    """A finished fit's result; if another store is asked for, its weights are evaluated on that."""
    if eval_store is None:
        return done
    with open_data([eval_store]) as other:
        if done.eval is not None and done.eval["store"] == other.digests[0]:
            return done
    facts = evaluate_run(job.out, eval_store, allow_import=True)
    result = replace(done, eval={key: facts[key] for key in ("accuracy", "loss", "store")})
    write_result(job.out, result)
    return result
