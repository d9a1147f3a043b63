"""The loop of a fit, to be read from top to bottom, and what a step of it is made of."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kdcache.errors import DataError, Interrupted
from kdcache.interrupt import StopFlag
from kdcache.keyed import keyed_hash
from kdcache.loader import StreamingLoader
from kdcache.student.augment import augment, augment_generator
from kdcache.student.checkpoint import write_checkpoint
from kdcache.student.evaluate import evaluate
from kdcache.student.job import Job
from kdcache.student.metrics import Metrics
from kdcache.student.module import Batch, split_batch
from kdcache.student.processes import asked_to_stop, same_buffers, seed_device
from kdcache.student.progress import Progress
from kdcache.student.rows import remainder
from kdcache.student.schedule import rate_factor
from kdcache.student.state import FitState

__all__ = ["open_loaders", "run_loop"]

LOG_STEPS = 100  # metrics get a row at least so often


def run_loop(
    job: Job,
    state: FitState,
    wrapped: Any,
    held: StreamingLoader | None,
    accelerator: Any,
    metrics: Metrics | None,
    progress: Progress,
    flag: StopFlag,
) -> None:
    """Take steps until all are done or early stopping has seen enough."""
    train, device, rank = job.train, accelerator.device, accelerator.process_index
    dropout = f"kdcache dropout {job.seed} {rank}"
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
        seed_device(int(keyed_hash(dropout, np.array([state.step]))[0]), device)
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
            job.record(metrics, state.step, "train", {**means, "lr": rate})
        if evaluates and held is not None:
            val = _validate(job, state, held, accelerator)
            job.record(metrics, state.step, "val", val)
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
            raise Interrupted(
                f"{job.out}: stopped by {flag.name or 'another process'} after step {state.step} of "
                f"{job.steps}; run the same command again to go on"
            )


def open_loaders(job: Job, accelerator: Any, stack: ExitStack) -> tuple[StreamingLoader, StreamingLoader | None]:
    """The training rows in the order of the seed, and the held-out rows in the order of the store."""
    train, fields = job.train, ("input", *job.objective.fields)
    place = {
        "world_size": accelerator.num_processes,
        "rank": accelerator.process_index,
        "device": str(accelerator.device),
    }
    budget = train.memory_mib << 20
    budget_held = 0 if job.rows.held is None else budget // 4
    loader = stack.enter_context(
        closing(
            StreamingLoader(
                job.data.readers,
                train.batch_size,
                seed=job.seed,
                lanes=train.lanes,
                fields=fields,
                rows=job.rows.train,
                remainder=remainder(job.trained_rows, train.batch_size),
                memory_budget=budget - budget_held,
                **place,
            )
        )
    )
    if job.rows.held is None:
        return loader, None
    label = ("label",) if job.data.has_labels else ()
    held = stack.enter_context(
        closing(
            StreamingLoader(
                job.data.readers,
                train.batch_size,
                shuffle=False,
                fields=tuple(dict.fromkeys(fields + label)),
                rows=job.rows.held,
                memory_budget=budget_held,
                **place,
            )
        )
    )
    return loader, held


def _endless(loader: StreamingLoader) -> Iterator[dict[str, Any]]:
    """Batches from where the loader stands, epoch after epoch: it begins the next one by itself."""
    while True:
        yield from loader


def _backward(
    wrapped: Any, batch: Batch, parts: int, accelerator: Any, global_rows: int
) -> tuple[Tensor, dict[str, Tensor]]:
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
    return total, {
        name: torch.stack([values[name] * share for values, share in zip(terms, shares, strict=True)]).sum()
        for name in terms[0]
    }


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
        raise DataError(
            f"{job.out}: the loss over the held-out rows became {found.objective} at step {state.step}; {job.cure}"
        )
    return {"loss": found.objective} | ({} if found.accuracy is None else {"accuracy": found.accuracy})
