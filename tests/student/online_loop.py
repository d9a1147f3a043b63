"""Distillation as it is done without a store: the teacher runs in the student's training loop, on the same batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from kdcache.config import Recipe, TrainConfig
from kdcache.loader import StreamingLoader
from kdcache.models import build_model
from kdcache.sources import open_source
from kdcache.store import open_store
from kdcache.taps import tap_outputs
from kdcache.teacher.frozen import FrozenTeacher, load_teacher
from kdcache.teacher.planning import input_spec_of, inputs_plan

__all__ = ["Loss", "batches_of", "online", "open_teacher"]

# Of the student's tensors, the teacher's, the labels and the layers that are trained beside the student.
Loss = Callable[[Mapping[str, Tensor], Mapping[str, Tensor], Tensor, nn.ModuleList], Tensor]


def open_teacher(recipe: Recipe) -> FrozenTeacher:
    """The teacher as a dump of this recipe has it."""
    assert recipe.teacher is not None
    source = open_source(recipe.source)
    plan = inputs_plan(recipe, source)
    return load_teacher(recipe.teacher, source.arrays, source.classes, input_spec_of(plan))


def batches_of(store: Path, train: TrainConfig, seed: int, epochs: int) -> Iterator[NDArray[np.int64]]:
    """The source's rows of each batch, from the stated order; of the store itself nothing is read but its plan."""
    with open_store(store) as reader:
        permutation = reader.plan.permutation()
        loader = StreamingLoader(reader, train.batch_size, seed=seed, lanes=train.lanes, fields=("input",))
        try:
            for epoch in range(epochs):
                order = loader.order(epoch)
                for first in range(0, len(order), train.batch_size):
                    yield permutation[order[first : first + train.batch_size]]
        finally:
            loader.close()


def online(
    recipe: Recipe,
    batches: Iterator[NDArray[np.int64]],
    student: tuple[str, dict[str, Any]],
    optimizer: Callable[[Any], torch.optim.Optimizer],
    loss: Loss,
    seed: int,
    *,
    taps: Mapping[str, str] | None = None,
    beside: Callable[[], nn.ModuleList] = nn.ModuleList,
    stepped: Callable[[], None] = lambda: None,
) -> tuple[list[float], dict[str, Tensor]]:
    """The loss of every step, and the student's weights after the last. `batches`: rows of the source."""
    source, teacher = open_source(recipe.source), open_teacher(recipe)
    known = source.ids()
    torch.manual_seed(seed)
    network = build_model(student[0], student[1], input=source.arrays["input"], outputs=10).to(teacher.device)
    layers = beside().to(teacher.device)
    steps = optimizer([*network.parameters(), *layers.parameters()])
    spec = input_spec_of(inputs_plan(recipe, source))
    losses = []
    with tap_outputs(network, taps or {}) as tapped:
        for places in batches:
            rows = {name: torch.from_numpy(values) for name, values in source.read(known[places]).items()}
            # A clone, since what was made in inference mode takes no part in what is differentiated.
            theirs = {name: value.clone() for name, value in teacher(rows["input"]).items()}
            logits = network(spec.apply(rows["input"].to(teacher.device)))
            value = loss({"logits": logits, **tapped}, theirs, rows["label"].to(teacher.device), layers)
            value.backward()
            steps.step()
            steps.zero_grad(set_to_none=True)
            losses.append(value.detach())
            stepped()
    return torch.stack(losses).tolist(), network.state_dict()
