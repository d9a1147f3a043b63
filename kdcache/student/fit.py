"""The one fit loop: for teachers, baselines and students alike, from a store to `model.safetensors`."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kdcache.config import ObjectiveConfig, TrainConfig
from kdcache.errors import CheckpointError, Interrupted, UsageError
from kdcache.keyed import keyed_hash
from kdcache.loader import StreamingLoader
from kdcache.models import InputSpec, WeightsInfo, build_model, save_weights
from kdcache.objectives import compose
from kdcache.student.augment import augment, augment_generator
from kdcache.student.checkpoint import newest_checkpoint, write_checkpoint
from kdcache.student.data import Data, open_data
from kdcache.student.evaluate import evaluate, evaluate_run, evaluate_store
from kdcache.student.folder import FitResult, has_begun, only_one, read_result, write_result
from kdcache.student.interrupt import StopFlag, stop_requests
from kdcache.student.metrics import Metrics
from kdcache.student.module import Batch, Fitted, split_batch, tap_shapes
from kdcache.student.optimizer import build_optimizer
from kdcache.student.progress import Progress
from kdcache.student.rows import choose_rows, evaluation_interval, planned_steps, remainder, steps_per_epoch
from kdcache.student.schedule import rate_factor
from kdcache.student.state import FitState
from kdcache.student.stopping import Stopping

__all__ = ["fit"]

LOG_STEPS = 100     # a row of metrics at least so often
AGREE_STEPS = 16    # several processes look together whether one was asked to stop

# What changes how a fit is run but not what comes out of it.
_FREE = {"seeds", "checkpoint_seconds", "memory_mib"}


def fit(
    model: str, args: Mapping[str, Any], stores: Sequence[Path], out: Path, *, objective: Sequence[ObjectiveConfig],
    train: TrainConfig, seed: int, identity: Mapping[str, Any], labels_only_rows: bool | None = None,
    steps: int | None = None, evaluate_every: int | None = None, eval_store: Path | None = None,
    input_spec: InputSpec | None = None, resume: bool = True, progress: Progress | None = None,
) -> FitResult:
    """Fit the network `model` (a reference, built with `args`) on aligned `stores` and leave it in the folder `out`.

    `steps` overrides the recipe's length: a baseline takes as many as its student. `evaluate_every` (steps) says how
    often held-out rows and metrics are looked at, by default once an epoch (see `evaluation_interval`).
    `labels_only_rows`: use labelled rows only; by default if the objective reads nothing but labels.
    `input_spec` replaces the standardisation that the store's plan states. `identity` is whatever else makes this fit
    another one; it is joined with the model, the objective, the seed and the stores' digests.

    A finished fit of the same identity is returned at once; an unfinished one goes on where its newest checkpoint is,
    on a CPU bit for bit as if it had never stopped. Raises CheckpointError for a folder of another identity, DataError
    when the loss is no longer finite, Interrupted after SIGINT or SIGTERM. Seeds torch's global generator.
    """
    progress = progress or Progress()
    with ExitStack() as stack:
        data = stack.enter_context(open_data(stores))
        composed = compose(objective, data.fields, data.classes)
        rows = choose_rows(data, train, composed.needs_labels_only if labels_only_rows is None else labels_only_rows)
        count = int(rows.train.sum())
        epoch_steps = steps_per_epoch(count, train.batch_size)
        total = steps or planned_steps(train, count)
        every = evaluate_every or evaluation_interval(train, total, epoch_steps)
        spec = input_spec or data.input_spec()
        whole = {
            **identity, "model": model, "args": dict(args), "seed": seed, "steps": total, "evaluate_every": every, "rows": count,
            "objective": [term.model_dump() for term in objective], "train": train.model_dump(mode="json", exclude=_FREE),
            "input_spec": asdict(spec), "stores": data.digests}
        if (done := read_result(out, whole)) is not None:
            return _evaluated_again(done, out, eval_store)

        accelerator = _accelerator(train.precision)
        main, device, reduce = accelerator.is_main_process, accelerator.device, accelerator.reduce
        stack.enter_context(only_one(out, main))
        if not resume and has_begun(out):
            raise CheckpointError(f"{out}: holds a fit that was begun; go on with it (--resume), or choose another folder")

        torch.manual_seed(seed)
        network = build_model(model, args, input=data.input, outputs=data.classes)
        adapters = composed.adapters(tap_shapes(network, composed.taps, data.input))
        fitted = Fitted(network, adapters, composed, spec, stack)
        wrapped = accelerator.prepare(fitted)
        loading = {
            "seed": seed, "lanes": train.lanes, "world_size": accelerator.num_processes, "rank": accelerator.process_index,
            "device": str(device)}
        budget = train.memory_mib << 20
        loader = stack.enter_context(StreamingLoader(
            data.readers, train.batch_size, fields=("input", *composed.fields), rows=rows.train,
            remainder=remainder(count, train.batch_size), memory_budget=budget, **loading))
        held = None if rows.held is None else stack.enter_context(StreamingLoader(
            data.readers, train.batch_size, fields=_with_label(data, composed.fields), rows=rows.held, shuffle=False,
            memory_budget=max(budget // 8, 1 << 24), **loading))
        state = FitState(fitted, build_optimizer(train, fitted.parameters()), accelerator.scaler, loader,
                         Stopping(train.early_stopping))
        if (checkpoint := newest_checkpoint(out, whole, progress.said if main else _ignore)) is not None:
            state.restore(checkpoint, device)

        writes = stack.enter_context(Metrics(out, state.step)) if main else None
        flag = stack.enter_context(stop_requests())
        began = saved = time.monotonic()
        dropout = keyed_hash(f"kdcache dropout {seed} {accelerator.process_index}", np.arange(total))
        if main:
            progress.started(str(out), state.step, total, count)
        fitted.train()
        batches = _endless(loader)
        while state.step < total and not state.stopping.stopped:
            batch = next(batches)
            rate = train.lr * rate_factor(train, state.step, total)
            for group in state.optimizer.param_groups:
                group["lr"] = rate
            _seed(int(dropout[state.step]), device)
            if train.augment:
                generator = augment_generator(seed, state.step, accelerator.process_index)
                batch = {**batch, "input": augment(_tensor(batch["input"]), train.augment, generator)}

            loss, terms = _backward(accelerator, wrapped, batch, train, _global_rows(state.step, epoch_steps, count, train))
            _update(state, train)
            state.step += 1
            state.samples += _global_rows(state.step - 1, epoch_steps, count, train)
            state.losses.add(len(batch["id"]), loss, terms)
            if main:
                progress.stepped(state.step)

            ends = state.step % every == 0 or state.step == total
            if ends or len(state.losses) >= LOG_STEPS:
                means = state.losses.take(state.step, f"{out}: {_cure(train)}", reduce)
                _record(writes, progress, state.step, every, "train", {**means, "lr": rate})
            if ends:
                val = None if held is None else _validate(accelerator, fitted, held, device)
                if val is not None:
                    _record(writes, progress, state.step, every, "val", val)
                if state.stopping.update(state.step, val) and state.stopping.keeps_best:
                    state.keep_best()
            stop = _asked(flag, accelerator, state.step)
            if main and (stop or time.monotonic() - saved >= train.checkpoint_seconds):
                state.losses.check(state.step, f"{out}: {_cure(train)}")
                write_checkpoint(out, whole, state.checkpoint(state.seconds + time.monotonic() - began))
                saved = time.monotonic()
            if stop:
                raise Interrupted(f"{out}: stopped by {flag.name or 'another process'} after step {state.step} of {total}; "
                                  "run the same command again to go on")

        seconds = state.seconds + time.monotonic() - began
        if main and (checkpoint is None or checkpoint.step < state.step):
            write_checkpoint(out, whole, state.checkpoint(seconds))
        if state.best is not None:
            network.load_state_dict(state.best)
        result = FitResult(
            whole, data.digests, seed, state.step, round(state.step / epoch_steps, 3),
            sum(p.numel() for p in network.parameters()), state.stopping.stopped,
            state.stopping.best_step if state.best is not None else state.step, state.stopping.val, None,
            round(seconds, 3), round(state.samples / max(seconds, 1e-9), 1))
        if main:
            save_weights(out / "model.safetensors", network, WeightsInfo(
                model, dict(args), data.input, data.classes, spec, {"stores": data.digests, "seed": seed, "step": result.best_step}))
            if eval_store is not None:
                with open_data([eval_store]) as other:
                    found = evaluate_store(network, other, spec, device)
                result = replace(result, eval={"accuracy": found.accuracy, "loss": found.loss, "store": other.digests[0]})
                _record(writes, progress, state.step, every, "eval", {"loss": found.loss, "accuracy": found.accuracy})
            write_result(out, result)
            progress.finished(state.step, seconds)
        accelerator.wait_for_everyone()
        return result
