"""How far decoded targets are from the teacher: divergence, the student's gradient, the log-partition."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from peers import View
from torch import Tensor

from kdcache.codecs import QuantisedLogits, SampledLogits, SparseLogits, Targets

__all__ = ["TEMPERATURES", "Judge", "Score", "merged", "view_of"]

TEMPERATURES = (1.0, 2.0, 4.0)


@dataclass(frozen=True)
class Score:
    """Means over rows at one T: `kl` KL(teacher ‖ decoded) in nats over all C classes; `cosine` between the gradients
    of the loss in the student's logits under decoded and dense targets, row by row; `batch` the same of the gradient
    summed over all rows; `norm` the ratio of the summed gradients' lengths; `log_z` the mean absolute error of the
    log-partition in nats, NaN where a system fixed T while dumping.
    """

    kl: float
    cosine: float
    batch: float
    norm: float
    log_z: float


class Judge:
    """A chunk of rows: teacher's and student's logits [n, C], measured in float64 up to 4,096 classes, else float32."""

    def __init__(self, teacher: Tensor, student: Tensor, temperature: float) -> None:
        self.wide = torch.float64 if teacher.shape[1] <= 4096 else torch.float32
        z = teacher.to(self.wide)
        self.rows, self.classes = z.shape
        self.log_p = (z / temperature).log_softmax(1)
        self.p = self.log_p.exp()
        self.entropy = (self.p * self.log_p).sum(1)
        self.q = (student.to(self.wide) / temperature).softmax(1)
        self.gradient = self.q - self.p
        self.length = self.gradient.norm(dim=1)
        self.log_z = (z / temperature).logsumexp(1) - z.logsumexp(1) / temperature

    def sums(self, view: View) -> dict[str, Tensor]:
        """What adds up over chunks."""
        log_r, target = self._spread(view)
        kl = self.entropy - (self.p * log_r).sum(1)
        gradient = self.q - target
        cosine = (gradient * self.gradient).sum(1) / (gradient.norm(dim=1) * self.length).clamp_min(1e-30)
        unknown = torch.full_like(self.log_z, math.nan)
        log_z = unknown if view.log_z is None else view.log_z.to(self.wide)
        return {
            "rows": torch.tensor(self.rows),
            "kl": kl.sum(),
            "cosine": cosine.sum(),
            "log_z": (log_z - self.log_z).abs().sum(),
            "ours": gradient.sum(0),
            "dense": self.gradient.sum(0),
        }

    def _spread(self, view: View) -> tuple[Tensor, Tensor]:
        """Log-probabilities of all classes, the others sharing evenly; and what the loss's gradient takes from q."""
        log_r = view.log_p.to(self.wide)
        if view.indices is None:
            return log_r, log_r.exp()
        kept = ~log_r.isneginf()
        likeliest = log_r.argmax(1, keepdim=True)  # padding says again what this slot says
        log_r = torch.where(kept, log_r, log_r.gather(1, likeliest))
        indices = torch.where(kept, view.indices, view.indices.gather(1, likeliest))
        others = (self.classes - kept.sum(1, keepdim=True)).clamp_min(1)
        rest = torch.full_like(log_r[:, :1], -math.inf) if view.rest is None else view.rest.to(self.wide)[:, None]
        wide = (rest - others.log()).expand(-1, self.classes).scatter(1, indices, log_r)
        if not view.as_one or view.rest is None:
            return wide, wide.exp()
        inside = torch.where(kept, self.q.gather(1, indices), 0.0).sum(1, keepdim=True)
        share = rest.exp() / (1 - inside).clamp_min(1e-30)
        return wide, (self.q * share).scatter(1, indices, log_r.exp())


def merged(parts: Iterator[dict[str, Tensor]]) -> Score:
    """The score of all chunks together."""
    total: dict[str, Tensor] = {}
    for part in parts:
        total = {name: total[name] + value if total else value for name, value in part.items()}
    floor = 1e-7 if total["kl"].dtype == torch.float32 else 0.0  # below it float32 sums say nothing
    rows, ours, dense = float(total["rows"]), total["ours"], total["dense"]
    return Score(
        max(float(total["kl"]) / rows, floor),
        min(float(total["cosine"]) / rows, 1 - floor),
        float(torch.nn.functional.cosine_similarity(ours, dense, dim=0)),
        float(ours.norm() / dense.norm()),
        float(total["log_z"]) / rows,
    )


def view_of(targets: Targets, temperature: float) -> View:
    """What kdcache's objectives take from decoded targets."""
    if isinstance(targets, SampledLogits):
        return View(targets.weights.log(), targets.indices)
    if isinstance(targets, SparseLogits):
        kept, rest = targets.log_probs(temperature)
        log_z = targets.log_p[:, 0] / temperature - kept[:, 0]
        return View(kept, targets.indices, rest, True, log_z)
    z = targets.dense() if isinstance(targets, QuantisedLogits) else targets
    z = z.double() if z.shape[1] <= 4096 else z.float()
    log_z = (z / temperature).logsumexp(1) - z.logsumexp(1) / temperature
    return View((z / temperature).log_softmax(1), log_z=log_z)
