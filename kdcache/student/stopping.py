"""Early stopping: remember the best evaluation, and say when to give up."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from kdcache.config import EarlyStopping

__all__ = ["Stopping"]


@dataclass
class Stopping:
    """The state of early stopping; patience counts evaluations, and a tie is no improvement."""

    config: EarlyStopping | None
    best: float | None = None
    best_step: int = 0
    waited: int = 0
    stopped: bool = False
    val: dict[str, float] | None = None

    def update(self, step: int, val: dict[str, float]) -> bool:
        """Take in an evaluation {"loss", "accuracy"?}; True if its weights are to be kept for the end."""
        assert self.config is not None, "nothing is held out without early stopping"
        score = val["loss"] if self.config.metric == "val_loss" else -val["accuracy"]
        better = self.best is None or score < self.best
        if better:
            self.best, self.best_step, self.waited = score, step, 0
        else:
            self.waited += 1
        if better or not self.config.restore_best:
            self.val = dict(val)
        self.stopped = self.waited >= self.config.patience
        return better and self.config.restore_best

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {key: value for key, value in asdict(self).items() if key != "config"}
