"""Cases of the losses on logits: loops over rows and classes, float64, straight from the formulas."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from objective_case import Case
from torch import Tensor

from kdcache.codecs import QuantisedLogits, SparseLogits
from kdcache.objectives import ce, dkd, hard_label, hint, jsd, kd, mse_logits, reverse_kl, soft_ce
from kdcache.objectives.deit import deit
from kdcache.objectives.dist import dist
from kdcache.objectives.divergences import skew_kl
from kdcache.objectives.standardised import logit_standardised_kd

__all__ = ["CASES", "logits", "mean", "probabilities"]

CLASSES = 7
Inputs = tuple[list[Any], list[Any]]
Row = Callable[..., Tensor]  # (student's row of probabilities, teacher's, **options) -> scalar


def logits(generator: torch.Generator, rows: int, classes: int = CLASSES) -> Tensor:
    return 2 * torch.randn(rows, classes, generator=generator)


def pair(generator: torch.Generator, rows: int) -> Inputs:
    return [logits(generator, rows)], [logits(generator, rows)]


def labelled(generator: torch.Generator, rows: int) -> Inputs:
    """The last row but one has no label, if there are rows enough."""
    label = torch.randint(CLASSES, (rows,), generator=generator)
    if rows > 2:
        label[-2] = -1
    return [logits(generator, rows)], [logits(generator, rows), label]


def only_label(generator: torch.Generator, rows: int) -> Inputs:
    student, (_, label) = labelled(generator, rows)
    return student, [label]


def quantised(generator: torch.Generator, rows: int) -> Inputs:
    codes = torch.randint(256, (rows, CLASSES), generator=generator, dtype=torch.uint8)
    scale, zero = torch.rand(rows, 1, generator=generator) / 50, torch.randn(rows, 1, generator=generator)
    return [logits(generator, rows)], [QuantisedLogits(codes, scale, zero)]


def sparse(generator: torch.Generator, rows: int) -> Inputs:
    """Three kept classes, and the tail's mass exact at T = 1 and at T = 4."""
    log_p = logits(generator, rows).log_softmax(dim=1)
    order = log_p.argsort(dim=1, descending=True)
    kept, rest = log_p.gather(1, order).split([3, CLASSES - 3], dim=1)
    tail = torch.stack([rest.logsumexp(1), (rest / 4).logsumexp(1)], dim=1)
    return [logits(generator, rows)], [SparseLogits(order[:, :3].contiguous(), kept, tail, CLASSES, (1.0, 4.0))]


def probabilities(row: Tensor, temperature: float) -> Tensor:
    """Of one row of logits [C]."""
    e = ((row - row.detach().max()) / temperature).exp()
    return e / e.sum()


def buckets(student: Tensor, targets: Any, row: int, temperature: float) -> tuple[Tensor, Tensor]:
    """One row's probabilities, the student's and the teacher's, over all classes or over the kept ones and the rest."""
    q = probabilities(student[row], temperature)
    if isinstance(targets, Tensor):
        return q, probabilities(targets[row], temperature)
    if hasattr(targets, "codes"):
        return q, probabilities(targets.codes[row].double() * targets.scale[row] + targets.zero[row], temperature)
    kept = [int(index) for index in targets.indices[row]]
    others = [q[label] for label in range(len(q)) if label not in kept]
    tail = targets.tail[row][targets.temperatures.index(temperature)].exp()
    weights = torch.stack([*(targets.log_p[row] / temperature).exp(), tail])
    return torch.stack([*(q[label] for label in kept), torch.stack(others).sum()]), weights / weights.sum()


def mean(per_row: Row) -> Callable[..., Tensor]:
    """T^2 times the mean over rows of what `per_row(q, p, **options)` says."""

    def reference(student: Tensor, targets: Any, *, temperature: float = 1.0, **options: float) -> Tensor:
        rows = [per_row(*buckets(student, targets, row, temperature), **options) for row in range(len(student))]
        return temperature**2 * torch.stack(rows).mean()

    return reference


def kl(p: Tensor, q: Tensor) -> Tensor:
    return torch.stack([a * (a / b).log() for a, b in zip(p, q, strict=True)]).sum()


def jensen_shannon(q: Tensor, p: Tensor, beta: float = 0.5) -> Tensor:
    mixture = beta * p + (1 - beta) * q
    return beta * kl(p, mixture) + (1 - beta) * kl(q, mixture)


def reference_ce(student: Tensor, label: Tensor) -> Tensor:
    rows = [-probabilities(student[i], 1.0)[int(c)].log() for i, c in enumerate(label) if c >= 0]
    return torch.stack(rows).mean()


def reference_hard(student: Tensor, targets: Any) -> Tensor:
    if isinstance(targets, Tensor):
        return reference_ce(student, torch.tensor([row.tolist().index(max(row.tolist())) for row in targets]))
    return reference_ce(student, targets.indices[:, 0])


def reference_mse(student: Tensor, targets: Tensor, *, centred: bool = False) -> Tensor:
    total = student.new_zeros(())
    for ours, theirs in zip(student, targets, strict=True):
        shift = (ours.mean() - theirs.mean()) if centred else 0
        total = total + sum(((a - b - shift) ** 2 for a, b in zip(ours, theirs, strict=True)), student.new_zeros(()))
    return total / student.numel()


def reference_dkd(
    student: Tensor, targets: Tensor, label: Tensor, *, temperature: float = 1.0, alpha: float = 1.0, beta: float = 8.0
) -> Tensor:
    rows = []
    for row, target in enumerate(label.tolist()):
        if target < 0:
            continue
        q, p = buckets(student, targets, row, temperature)
        others = [c for c in range(len(q)) if c != target]
        binary = kl(torch.stack([p[target], p[others].sum()]), torch.stack([q[target], q[others].sum()]))
        rows.append(alpha * binary + beta * kl(p[others] / p[others].sum(), q[others] / q[others].sum()))
    return temperature**2 * torch.stack(rows).mean()


def reference_hint(student: Tensor, teacher: Tensor) -> Tensor:
    """The teacher's map is twice as large along both axes: each place is the mean of four."""
    total = student.new_zeros(())
    for row in range(len(student)):
        for i in range(student.shape[2]):
            for j in range(student.shape[3]):
                block = teacher[row, :, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2].flatten(1).mean(1)
                total = total + ((student[row, :, i, j] - block) ** 2).sum()
    return total / student.numel()


def dense(targets: Any) -> Tensor:
    return targets if isinstance(targets, Tensor) else targets.codes.double() * targets.scale + targets.zero


def skewed(q: Tensor, p: Tensor, alpha: float = 0.1) -> Tensor:
    return kl(p, alpha * p + (1 - alpha) * q)


def pearson(a: Tensor, b: Tensor) -> Tensor:
    """Of two vectors, by their sums."""
    n = len(a)
    covariance = n * (a * b).sum() - a.sum() * b.sum()
    return covariance / ((n * (a * a).sum() - a.sum() ** 2) * (n * (b * b).sum() - b.sum() ** 2)).sqrt()


def reference_dist(
    student: Tensor, targets: Any, *, temperature: float = 1.0, beta: float = 1.0, gamma: float = 1.0
) -> Tensor:
    q, p = (torch.stack([probabilities(row, temperature) for row in side]) for side in (student, dense(targets)))
    rows = torch.stack([pearson(q[i], p[i]) for i in range(len(q))])
    columns = torch.stack([pearson(q[:, c], p[:, c]) for c in range(q.shape[1])])
    return temperature**2 * (beta * (1 - rows.mean()) + gamma * (1 - columns.mean()))


def z_score(row: Tensor) -> Tensor:
    mean = sum(row.unbind(), row.new_zeros(())) / len(row)
    return (row - mean) / (sum(((x - mean) ** 2 for x in row), row.new_zeros(())) / len(row)).sqrt()


def reference_standardised(student: Tensor, targets: Any, *, temperature: float = 2.0) -> Tensor:
    rows = zip(student, dense(targets), strict=True)
    found = [kl(probabilities(z_score(b), temperature), probabilities(z_score(a), temperature)) for a, b in rows]
    return temperature**2 * torch.stack(found).mean()


def two_heads(generator: torch.Generator, rows: int) -> Inputs:
    student, rest = labelled(generator, rows)
    return [*student, logits(generator, rows)], rest


def reference_deit(
    ours: Tensor, distilled: Tensor, targets: Any, label: Tensor, *, kind: str, alpha: float, temperature: float = 1.0
) -> Tensor:
    soft = reference_kd(distilled, targets, temperature=temperature)
    learnt = soft if kind == "soft" else reference_hard(distilled, targets)
    return (1 - alpha) * reference_ce(ours, label) + alpha * learnt


def maps(generator: torch.Generator, rows: int) -> Inputs:
    return [torch.randn(rows, 5, 2, 3, generator=generator)], [torch.randn(rows, 5, 4, 6, generator=generator)]


reference_kd = mean(lambda q, p: kl(p, q))
reference_soft_ce = mean(lambda q, p: -(p * q.log()).sum())
reference_reverse_kl = mean(lambda q, p: kl(q, p))
reference_jsd = mean(jensen_shannon)
reference_skew_kl = mean(skewed)

CASES = [
    Case("ce", ce, reference_ce, only_label),
    Case("hard_label", hard_label, reference_hard, pair),
    Case("hard_label_sparse", hard_label, reference_hard, sparse),
    Case("kd", kd, reference_kd, pair),
    Case("kd_hot", kd, reference_kd, pair, {"temperature": 20.0}),
    Case("kd_quantised", kd, reference_kd, quantised, {"temperature": 2.0}),
    Case("kd_sparse", kd, reference_kd, sparse, {"temperature": 4.0}),
    Case("soft_ce", soft_ce, reference_soft_ce, pair, {"temperature": 4.0}),
    Case("soft_ce_sparse", soft_ce, reference_soft_ce, sparse, {"temperature": 4.0}),
    Case("reverse_kl", reverse_kl, reference_reverse_kl, pair, {"temperature": 4.0}),
    Case("reverse_kl_sparse", reverse_kl, reference_reverse_kl, sparse),
    Case("jsd", jsd, reference_jsd, pair, {"temperature": 4.0, "beta": 0.5}),
    Case("jsd_uneven", jsd, reference_jsd, pair, {"beta": 0.9}),
    Case("jsd_sparse", jsd, reference_jsd, sparse, {"temperature": 4.0, "beta": 0.1}),
    Case("mse_logits", mse_logits, reference_mse, pair),
    Case("mse_logits_centred", mse_logits, reference_mse, pair, {"centred": True}),
    Case("dkd", dkd, reference_dkd, labelled, {"temperature": 4.0}),
    Case("dkd_target_only", dkd, reference_dkd, labelled, {"alpha": 2.0, "beta": 0.0}),
    Case("skew_kl", skew_kl, reference_skew_kl, pair, {"temperature": 4.0}),
    Case("skew_kl_most", skew_kl, reference_skew_kl, pair, {"alpha": 0.9}),
    Case("skew_kl_quantised", skew_kl, reference_skew_kl, quantised, {"alpha": 0.5}),
    Case("skew_kl_sparse", skew_kl, reference_skew_kl, sparse, {"temperature": 4.0, "alpha": 0.3}),
    Case("dist", dist, reference_dist, pair, smallest=2),
    Case("dist_hot", dist, reference_dist, pair, {"temperature": 4.0, "beta": 2.0, "gamma": 0.5}, smallest=2),
    Case("dist_quantised", dist, reference_dist, quantised, {"temperature": 2.0}, smallest=2),
    Case("logit_standardised_kd", logit_standardised_kd, reference_standardised, pair),
    Case("logit_standardised_kd_cold", logit_standardised_kd, reference_standardised, pair, {"temperature": 0.5}),
    Case("logit_standardised_kd_quantised", logit_standardised_kd, reference_standardised, quantised),
    Case("deit_hard", deit, reference_deit, two_heads, {"kind": "hard", "alpha": 0.5}),
    Case("deit_soft", deit, reference_deit, two_heads, {"kind": "soft", "alpha": 0.1, "temperature": 3.0}),
    Case("hint", hint, reference_hint, maps),
]
