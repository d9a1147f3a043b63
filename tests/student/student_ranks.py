"""What each process of a torchrun job runs: a fit that notes the ids of every batch it is given."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from student_runs import KD, MLP_HINT, small

import kdcache.student.loop as loop
from kdcache.config import EarlyStopping, ObjectiveConfig

HINTED = {"objective": MLP_HINT, "args": {"hidden": [16]}, "early_stopping": EarlyStopping(patience=5), "accumulate": 2}
RELATIONS = {
    "objective": [*KD, *(ObjectiveConfig(name=name, field="features.hidden", tap="layers.0", weight=5.0)
                         for name in ("rkd_distance", "rkd_angle", "sp"))],
    "args": {"hidden": [16]},
}  # fmt: skip
CONTEST = {
    "objective": [*KD, ObjectiveConfig.model_validate({"name": "adversarial", "hidden": 16, "spectral_norm": False})],
    "args": {"hidden": [16]},
    "accumulate": 2,
}
TOKENS = {"objective": KD, "model": "zoo:gpt", "args": {"width": 16, "layers": 1, "heads": 2}, "accumulate": 2}


def main(kind: str, store: Path, out: Path, notes: Path) -> None:
    """Fit into `out`; line t of `notes`/RANK is the ids of the rank's share of global batch t."""
    notes.mkdir(exist_ok=True)
    inner = loop._backward
    options: dict[str, Any] = {"hinted": HINTED, "tokens": TOKENS, "relations": RELATIONS, "contest": CONTEST}[kind]
    with (notes / os.environ.get("RANK", "0")).open("w") as file:

        def spied(wrapped: Any, batch: Any, *rest: Any) -> Any:
            file.write(" ".join(map(str, batch["id"].tolist())) + "\n")
            return inner(wrapped, batch, *rest)

        loop._backward = spied
        small(store, out, epochs=2, batch_size=34, optimizer="sgd", lr=0.02, **options)


if __name__ == "__main__":
    main(sys.argv[1], *map(Path, sys.argv[2:]))
