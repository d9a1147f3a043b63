"""The end of a fit: weights, evaluation, and `result.json` last."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from kdcache.models import WeightsInfo, save_weights
from kdcache.student.data import open_data
from kdcache.student.evaluate import evaluate_run, evaluate_store
from kdcache.student.folder import FitResult, write_result
from kdcache.student.job import Job
from kdcache.student.metrics import Metrics
from kdcache.student.processes import same_buffers
from kdcache.student.state import FitState

__all__ = ["evaluated", "finish"]


def finish(job: Job, state: FitState, eval_store: Path | None, accelerator: Any, metrics: Metrics | None) -> FitResult:
    """Write the weights, evaluate them, and say last that the fit is done."""
    network, spec = state.fitted.model, job.spec
    kept = state.step if state.best is None else state.stopping.best_step
    if state.best is not None:
        network.load_state_dict(state.best)
    same_buffers(network, accelerator)
    parameters = sum(parameter.numel() for parameter in network.parameters())
    result = FitResult(
        job.identity,
        job.data.digests,
        job.seed,
        state.step,
        round(state.step / job.epoch_steps, 3),
        parameters,
        state.stopping.stopped,
        kept,
        state.stopping.val,
        None,
        round(state.seconds, 3),
        round(state.samples / max(state.seconds, 1e-9), 1),
    )
    if accelerator.is_main_process:
        extra = {"stores": job.data.digests, "seed": job.seed, "step": kept}
        if job.data.tokenizer is not None:
            extra["tokenizer"] = dict(job.data.tokenizer)
        if job.inputs != ("input",):
            extra["inputs"] = list(job.inputs)
        if job.metrics:
            extra |= {"metrics": list(job.metrics), "metric_options": job.metric_options}
        first, *others = job.data.inputs(job.inputs)
        info = WeightsInfo(job.model, job.args, first, job.data.outputs, spec, extra, tuple(others))
        save_weights(job.out / "model.safetensors", network, info)
        if eval_store is not None:
            with open_data([eval_store]) as other:
                found = evaluate_store(network, info, other, accelerator.device, job.out)
            job.record(metrics, state.step, "eval", found)
            result = replace(result, eval={**found, "store": other.digests[0]})
        write_result(job.out, result)
    accelerator.wait_for_everyone()
    return result


def evaluated(done: FitResult, job: Job, eval_store: Path | None) -> FitResult:
    """A finished fit's result; if another store is asked for, its weights are evaluated on that."""
    if eval_store is None:
        return done
    with open_data([eval_store]) as other:
        if done.eval is not None and done.eval["store"] == other.digests[0]:
            return done
    facts = evaluate_run(job.out, eval_store, allow_import=True)
    result = replace(done, eval={key: value for key, value in facts.items() if key not in ("rows", "labelled")})
    write_result(job.out, result)
    return result
