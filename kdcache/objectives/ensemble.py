"""Several teachers as one: the student learns their weighted mean, with weights that may differ from row to row.

A mean of probabilities is where the losses against each teacher alone are together least: sum w_k KL(p_k || q) is
KL(sum w_k p_k || q) and a number that does not depend on the student. A mean of logits is the normalised geometric
mean of the probabilities, sharper where the teachers agree.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from kdcache.codecs import Targets
from kdcache.errors import UsageError
from kdcache.objectives.matching import check_label, check_temperature
from kdcache.objectives.response import kd
from kdcache.objectives.whole import whole

__all__ = ["ensemble", "ensemble_by_label"]

Mean = Literal["probabilities", "logits"]
_EACH = "take one kd for each teacher's field, with its weight (the same gradient as the mean of their probabilities)"


def ensemble(
    student: Tensor,
    *targets: Targets,
    temperature: float = 1.0,
    mean: Mean = "probabilities",
    weights: tuple[float, ...] | None = None,
    confidence: Literal["none", "entropy"] = "none",
) -> Tensor:
    """T^2 KL(p || softmax(student / T)) in nats, p of K >= 2 teachers together: mean over rows.

    mean = "probabilities": p = sum_k w_k softmax(z_k / T), "logits": p = softmax(sum_k w_k z_k / T), the arithmetic and
    the geometric mean of Hinton et al. 2015, section 1. student and z_k [B, C]. `weights` are the teachers' own, in
    their order, not negative and made to sum to 1; all the same without.

    confidence = "entropy" multiplies them, row by row, by (1 - H_k / sum_j H_j) / (K - 1), H_k the entropy of
    softmax(z_k), and makes them sum to 1 again: a teacher that is sure of itself counts for more. It is the entropy
    weighting (Kwon et al. 2020) as the code of Zhang et al. 2022 has it. H is at T = 1 whatever the temperature.

    Dense and quantised targets. `SparseLogits` are refused, for which classes a teacher did not keep is another set
    for each teacher; one `kd` for each teacher has the same gradient as the mean of probabilities, and takes them.
    """
    return _against(student, "ensemble", targets, None, temperature, mean, weights, confidence)


def ensemble_by_label(
    student: Tensor,
    *targets_label: Targets,
    temperature: float = 1.0,
    mean: Mean = "probabilities",
    weights: tuple[float, ...] | None = None,
) -> Tensor:
    """`ensemble` with more weight, row by row, for the teachers that are right: mean over ALL rows.

    CA-MKD (Zhang et al. 2022, section 3): w_k = (1 - softmax_k(L)) / (K - 1), L_k = -log softmax(z_k)[label] at
    T = 1. Its loss, the sum of w_k times each teacher's cross-entropy, has the gradient of this with mean =
    "probabilities" up to T^2; its code divides by K once more. `weights` multiply w_k as in `ensemble`.

    Called as (student, teacher, teacher, ..., label); label int64 (or int32) [B], where it is -1 the teachers have
    their `weights`.
    """
    if len(targets_label) < 2 or not isinstance(targets_label[-1], Tensor):
        raise UsageError("ensemble_by_label: pass the student's logits, each teacher's, and the batch's `label` last")
    label = check_label("ensemble_by_label", student, targets_label[-1])
    return _against(student, "ensemble_by_label", targets_label[:-1], label, temperature, mean, weights, "label")


def _against(
    student: Tensor,
    name: str,
    targets: Sequence[Targets],
    label: Tensor | None,
    temperature: float,
    mean: str,
    weights: tuple[float, ...] | None,
    confidence: str,
) -> Tensor:
    check_temperature(temperature)
    _check(name, "mean", mean, ("probabilities", "logits"))
    if label is None:
        _check(name, "confidence", confidence, ("none", "entropy"))
    if len(targets) < 2:
        raise UsageError(f"{name}: it is for several teachers and got {len(targets)}: zip their stores, or take kd")
    reason = "it takes the mean over teachers of all classes"
    teachers = [whole(name, reason, student, one, _EACH) for one in targets]
    shares = _shares(name, teachers, weights)[:, None]  # [K, 1]
    if confidence == "entropy":
        shares = _together(shares, _sure(torch.stack([_entropy(one) for one in teachers])))
    elif label is not None:
        shares = torch.where(label >= 0, _together(shares, _right(teachers, label)), shares)
    if mean == "logits":
        common = torch.stack([share[:, None] * one for share, one in zip(shares, teachers, strict=True)]).sum(dim=0)
    else:
        common = torch.full_like(teachers[0], -math.inf)
        for share, one in zip(shares, teachers, strict=True):
            common = torch.logaddexp(common, share.log()[:, None] + torch.log_softmax(one / temperature, dim=1))
        common = common * temperature  # logits whose softmax at T is the mean
    return kd(student, common, temperature=temperature)


def _shares(name: str, teachers: list[Tensor], weights: tuple[float, ...] | None) -> Tensor:
    """Float [K], not negative, of sum 1."""
    given = weights if weights is not None else (1.0,) * len(teachers)
    if len(given) != len(teachers):
        raise UsageError(f"{name}: {len(given)} weights {list(given)} for {len(teachers)} teachers: give one for each")
    if any(not 0 <= weight < math.inf for weight in given) or not sum(given):
        raise UsageError(f"{name}: weights = {list(given)}: they must be finite, 0 or above, and not all of them 0")
    return teachers[0].new_tensor([weight / sum(given) for weight in given])


def _together(shares: Tensor, confidence: Tensor) -> Tensor:
    """The teachers' own weights [K, 1] times those of the rows [K, B], of sum 1; their own where nothing is left."""
    both = shares * confidence
    total = both.sum(dim=0)
    return torch.where(total > 0, both / total, shares)


def _sure(entropies: Tensor) -> Tensor:
    """[K, B] of sum 1 over the teachers: the more the smaller the entropy; all the same where all of them are 0."""
    total = entropies.sum(dim=0)
    return (1 - torch.where(total > 0, entropies / total, 1 / len(entropies))) / (len(entropies) - 1)


def _right(teachers: list[Tensor], label: Tensor) -> Tensor:
    """[K, B] of sum 1 over the teachers: the more the smaller the cross-entropy with the label."""
    place = label.clamp(min=0)[:, None]
    wrong = torch.stack([-torch.log_softmax(one, dim=1).gather(1, place)[:, 0] for one in teachers])
    return (1 - torch.softmax(wrong, dim=0)) / (len(teachers) - 1)


def _entropy(logits: Tensor) -> Tensor:
    """Nats, [B]."""
    log_p = torch.log_softmax(logits, dim=1)
    p = log_p.exp()
    return -torch.where(p != 0, p * log_p, 0).sum(dim=1)


def _check(name: str, key: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise UsageError(f"{name}: {key} = {value!r}; it is one of {', '.join(known)}")
