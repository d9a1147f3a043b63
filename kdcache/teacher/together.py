"""What several teachers are worth together: the mean of their probabilities on the evaluation rows."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kdcache.config import TeacherConfig
from kdcache.loader import StreamingLoader
from kdcache.metrics import fields_read, measured
from kdcache.store import open_store
from kdcache.teacher.frozen import load_teacher
from kdcache.teacher.judge import network_of
from kdcache.teacher.planning import input_spec_of

__all__ = ["judge_together"]


def judge_together(
    configs: Sequence[TeacherConfig],
    weights: Sequence[Path | None],
    stores: Sequence[Path],
    eval_store: Path,
    metrics: Sequence[str] = (),
    options: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The metrics (by default accuracy) of log mean_k softmax(z_k), and "parameters", those of all teachers together.

    `stores`: the one that each teacher filled. Metrics on another output (NAME.OUTPUT) and functions of the user's own
    are left out, for the teachers have logits in common and perhaps nothing else. {} where none is left, or where the
    evaluation rows lack an input of a teacher.
    """
    judged = [name for name in metrics or ("accuracy",) if "." not in name]
    wanted = tuple(dict.fromkeys(name for config in configs for name in config.inputs))
    teachers = []
    for config, path, store in zip(configs, weights, stores, strict=True):
        with open_store(store) as reader:
            arrays = {name: field.array for name, field in reader.fields.items()}
            teachers.append(load_teacher(config, arrays, reader.plan.classes, input_spec_of(reader.plan), path))
    networks = [network_of(teacher) for teacher in teachers]

    def network(rows: dict[str, Tensor]) -> dict[str, Tensor]:
        said = [torch.log_softmax(one(rows)["logits"], dim=-1) for one in networks]
        return {"logits": torch.logsumexp(torch.stack(said), dim=0) - math.log(len(said))}

    with open_store(eval_store) as reader:
        if not judged or any(name not in reader.fields for name in wanted):
            return {}
        batch = min(config.batch_size for config in configs)
        loader = StreamingLoader(reader, batch, shuffle=False, fields=fields_read(judged, wanted))
        found = measured(judged, options or {}, network, loader, class_names=reader.plan.class_names)
    parameters = sum(p.numel() for teacher in teachers for p in teacher.model.parameters())
    return {"parameters": parameters, **found}
