"""The network that a fit begins with."""

from __future__ import annotations

from torch import nn

from kdcache.models import build_model, check_vocabulary, load_weights, partial_weights
from kdcache.student.job import Job
from kdcache.student.language import check_language_model

__all__ = ["build_student"]


def build_student(job: Job) -> nn.Module:
    """Built from torch's global generator, in training mode; with what fits of the weights that it is to begin from."""
    data = job.data
    first, *others = data.inputs(job.inputs)
    network = build_model(
        job.model, job.args, input=first, outputs=data.outputs, extra=others, positions=data.positions
    )
    check_vocabulary(network, job.model, data.tokenizer)
    if data.positions is not None:
        check_language_model(network, job.model, data.input, data.positions, data.outputs)
    if job.weights is not None:
        partial_weights(network, load_weights(job.weights)[0], job.weights)
    return network
