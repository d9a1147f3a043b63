"""Everything that changes while a fit runs, and its way into a checkpoint and back."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from kdcache.errors import CheckpointError
from kdcache.loader import StreamingLoader
from kdcache.student.checkpoint import Checkpoint
from kdcache.student.losses import RunningLoss
from kdcache.student.module import Fitted
from kdcache.student.optimizer import load_optimizer_state, optimizer_state
from kdcache.student.stopping import Stopping

__all__ = ["FitState"]


@dataclass
class FitState:
    """A fit after `step` steps. Schedule, augmentation and dropout are functions of the step and need no state here."""

    fitted: Fitted
    optimizers: dict[str, torch.optim.Optimizer]  # by the name of its file in a checkpoint
    scaler: Any  # torch's GradScaler under fp16, else None
    loader: StreamingLoader
    stopping: Stopping
    losses: RunningLoss = field(default_factory=RunningLoss)
    best: dict[str, Tensor] | None = None
    step: int = 0
    samples: int = 0
    seconds: float = 0.0

    def keep_best(self) -> None:
        """Remember the student's weights as the best so far."""
        self.best = {name: value.detach().clone() for name, value in self.fitted.model.state_dict().items()}

    def checkpoint(self) -> Checkpoint:
        """All of it, to go on from."""
        states = {name: optimizer_state(optimizer) for name, optimizer in self.optimizers.items()}
        losses, terms = self.losses.state()
        tensors = {
            "model": self.fitted.model.state_dict(),
            "adapters": self.fitted.adapters.state_dict(),
            **{name: tensors for name, (tensors, _) in states.items()},
            "losses": losses,
            "best": self.best or {},
        }
        facts = {
            "loader": self.loader.state_dict(),
            "stopping": self.stopping.state(),
            **{name: scalars for name, (_, scalars) in states.items()},
            "terms": terms,
            "scaler": self.scaler.state_dict() if self.scaler is not None else None,
            "samples": self.samples,
            "seconds": self.seconds,
        }
        return Checkpoint(self.step, {name: content for name, content in tensors.items() if content}, facts)

    def restore(self, checkpoint: Checkpoint, device: torch.device) -> None:
        """Go on from a checkpoint."""
        tensors, facts = checkpoint.tensors, checkpoint.facts
        try:
            self.fitted.model.load_state_dict(tensors["model"])
            self.fitted.adapters.load_state_dict(tensors.get("adapters", {}))
            for name, optimizer in self.optimizers.items():
                load_optimizer_state(optimizer, tensors.get(name, {}), facts[name])
            if self.scaler is not None:
                self.scaler.load_state_dict(facts["scaler"])
            self.losses.load_state(tensors.get("losses", {}), facts["terms"], device)
            for name, value in facts["stopping"].items():
                setattr(self.stopping, name, value)
        except (KeyError, RuntimeError, TypeError) as error:
            raise CheckpointError(
                f"the checkpoint of step {checkpoint.step} does not fit this student: {error}"
            ) from error
        self.best = {name: value.to(device) for name, value in tensors["best"].items()} if "best" in tensors else None
        self.loader.load_state_dict(facts["loader"])
        self.step = checkpoint.step
        self.samples, self.seconds = facts["samples"], facts["seconds"]
