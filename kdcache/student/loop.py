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
from kdcache.student.evaluate import Measured, compared_fields, evaluate, measure_logits, measure_positions
from kdcache.student.job import Job
from kdcache.student.memory import loader_budgets
from kdcache.student.metrics import Metrics
from kdcache.student.module import Batch, split_batch
from kdcache.student.processes import asked_to_stop, same_buffers, seed_device
from kdcache.student.progress import Progress
from kdcache.student.rows import remainder
from kdcache.student.schedule import rate_factor
from kdcache.student.shares import part_factors
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
        factor = rate_factor(train, state.step, job.steps)
        for group in (group for optimizer in state.optimizers.values() for group in optimizer.param_groups):
            group["lr"] = group["initial_lr"] * factor
        if train.augment:
            batch["input"] = augment(batch["input"], train.augment, augment_generator(job.seed, state.step, rank))
        seed_device(int(keyed_hash(dropout, np.array([state.step]))[0]), device)
        global_rows = job.batch_rows(state.step)
        factors = _factors(job, state, accelerator)
        loss, terms = _backward(wrapped, batch, train.accumulate, accelerator, factors)
        _update(state, train.clip_norm)
        state.step += 1
        state.samples += global_rows
        state.losses.add(global_rows, loss, terms)
        progress.stepped(state.step)

        evaluates = state.step % job.evaluate_every == 0 or state.step == job.steps
        if evaluates or len(state.losses) == LOG_STEPS:
            means = state.losses.take(state.step, f"{job.out}: ", job.cure, accelerator.reduce)
            job.record(metrics, state.step, "train", {**means, "lr": train.lr * factor})
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
    train = job.train
    fields = tuple(dict.fromkeys((*job.inputs, *job.objective.fields, *job.data.sequence_fields)))
    place = {
        "world_size": accelerator.num_processes,
        "rank": accelerator.process_index,
        "device": str(accelerator.device),
    }
    budget, budget_held = loader_budgets(train)
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
                view=job.view,
                memory_budget=budget,
                **place,
            )
        )
    )
    if job.rows.held is None:
        return loader, None
    label: tuple[str, ...] = ("label",) if job.data.has_labels else ()
    if job.data.positions is not None:
        label = ("label", *compared_fields(job.data))
    held = stack.enter_context(
        closing(
            StreamingLoader(
                job.data.readers,
                train.batch_size,
                shuffle=False,
                fields=tuple(dict.fromkeys(fields + label)),
                view=None if job.view is None else 1,  # the same rows at every look
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


def _factors(job: Job, state: FitState, accelerator: Any) -> list[tuple[float, ...]] | None:
    """What each micro-batch weighs in the step that comes; None where it is the whole global batch."""
    world, parts = accelerator.num_processes, job.train.accumulate
    if world == parts == 1:
        return None
    epoch, within = divmod(state.step, job.epoch_steps)
    first = within * job.train.batch_size
    rows = state.loader.order(epoch)[first : first + job.batch_rows(state.step)]
    return part_factors(job.data.scored[rows], job.by_label, accelerator.process_index, world, parts)


def _backward(
    wrapped: Any, batch: Batch, parts: int, accelerator: Any, factors: list[tuple[float, ...]] | None
) -> tuple[Tensor, dict[str, Tensor]]:
    """Gradients of the global batch's mean loss, from at most `parts` micro-batches with these factors for each term.

    Gives back loss and terms as they enter the gradients: their mean over processes is the global batch's.
    """
    micro = split_batch(batch, parts)
    if factors is None:
        loss, values, _ = wrapped(batch)
        (loss if accelerator.scaler is None else accelerator.scaler.scale(loss)).backward()
        return loss.detach(), values
    losses: list[Tensor] = []
    terms: list[dict[str, Tensor]] = []
    for number, (part, weights) in enumerate(zip(micro, factors, strict=True), 1):
        with nullcontext() if number == len(micro) else accelerator.no_sync(wrapped):
            loss, values, _ = wrapped(part, weights)
            (loss if accelerator.scaler is None else accelerator.scaler.scale(loss)).backward()
        losses.append(loss.detach())
        terms.append(values)
    return torch.stack(losses).sum(), {name: torch.stack([part[name] for part in terms]).sum() for name in terms[0]}


def _update(state: FitState, clip_norm: float | None) -> None:
    """One step of every optimiser, the gradients of each clipped to a norm first if asked."""
    for optimizer in state.optimizers.values():
        if clip_norm is not None:
            if state.scaler is not None:
                state.scaler.unscale_(optimizer)
            torch.nn.utils.clip_grad_norm_([p for group in optimizer.param_groups for p in group["params"]], clip_norm)
        if state.scaler is None:
            optimizer.step()
        else:
            state.scaler.step(optimizer)
        optimizer.zero_grad(set_to_none=True)
    if state.scaler is not None:
        state.scaler.update()


def _validate(job: Job, state: FitState, held: StreamingLoader, accelerator: Any) -> dict[str, float]:
    """Over the held-out rows {"loss" (the objective), "accuracy"?, of sequences "perplexity" and "agreement"?}, the
    same in every process."""
    same_buffers(state.fitted, accelerator)
    state.fitted.eval()

    def forward(batch: Batch) -> Measured:
        loss, _, outputs = state.fitted(batch)
        if outputs is None:
            return measure_positions(state.fitted.model, batch, loss)
        return measure_logits(batch, outputs.get("logits"), loss)

    found = evaluate(forward, held, accelerator.device, accelerator.reduce)
    state.fitted.train()
    if found.objective is None or not math.isfinite(found.objective):
        raise DataError(
            f"{job.out}: the loss over the held-out rows became {found.objective} at step {state.step}; {job.cure}"
        )
    rest = {key: value for key, value in found.facts().items() if value is not None}
    return rest | {"loss": found.objective}
