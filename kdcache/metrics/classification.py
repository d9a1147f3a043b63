"""How good predicted classes and their probabilities are, over the labelled places.

Logits are [N, C] with labels [N], or [N, P, C] with [N, P] (every position counts alike); -1 is left out. p =
softmax(logits). `NAME.OUTPUT` in a recipe judges another output of the network by the labels `label.OUTPUT`.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from kdcache.errors import UsageError
from kdcache.metrics.judged import Judged
from kdcache.metrics.labelled import labelled

__all__ = ["accuracy", "agreement", "brier", "calibration_error", "macro_f1", "nll", "perplexity", "top5"]

MOST_NATS = 700.0  # exp of more is no float64


def accuracy(judged: Judged) -> dict[str, float]:
    """{"accuracy"}: the share of labelled places whose most likely class is the label, 0 to 1."""
    logits, label = labelled(judged)
    return {"accuracy": _share(logits.argmax(dim=1) == label)}


def agreement(judged: Judged) -> dict[str, float]:
    """{"agreement"}: the share of places, labelled or not, whose most likely class is the teacher's.

    Top-1 agreement of Stanton et al. 2021; rows["teacher"] is the teacher's most likely class.
    """
    logits, best = labelled(judged, "teacher")
    return {"agreement": _share(logits.argmax(dim=1) == best)}


def top5(judged: Judged) -> dict[str, float]:
    """{"top5"}: the share of labelled places whose label is among the five most likely classes."""
    logits, label = labelled(judged)
    if logits.shape[1] <= 5:
        raise UsageError(f"top5: of {logits.shape[1]} classes the label is always among the best 5; take accuracy")
    return {"top5": _share((logits.topk(5, dim=1).indices == label[:, None]).any(dim=1))}


def macro_f1(judged: Judged) -> dict[str, float]:
    """{"macro_f1"}: the mean over classes of 2 TP / (2 TP + FP + FN), a class at a time against all others.

    Classes that are neither labelled nor predicted anywhere are left out of the mean.
    """
    logits, label = labelled(judged)
    guess, classes = logits.argmax(dim=1), logits.shape[1]
    hits = torch.bincount(label[guess == label], minlength=classes).double()
    named = (torch.bincount(label, minlength=classes) + torch.bincount(guess, minlength=classes)).double()
    return {"macro_f1": float((2 * hits / named)[named > 0].mean())}


def nll(judged: Judged) -> dict[str, float]:
    """{"nll"}: -log p(label) in nats, the mean over labelled places."""
    return {"nll": _nll(*labelled(judged))}


def perplexity(judged: Judged) -> dict[str, float]:
    """{"perplexity"}: exp of `nll`."""
    return {"perplexity": math.exp(min(_nll(*labelled(judged)), MOST_NATS))}


def brier(judged: Judged) -> dict[str, float]:
    """{"brier"}: sum over classes of (p - [class is the label])^2, the mean over labelled places, 0 to 2 (Brier 1950).

    0 is best.
    """
    logits, label = labelled(judged)
    p = logits.softmax(dim=1)
    right = p.gather(1, label[:, None]).squeeze(1)
    return {"brier": float((p.square().sum(dim=1) - 2 * right + 1).double().mean())}


def calibration_error(judged: Judged, *, bins: int = 15) -> dict[str, float]:
    """{"calibration_error"}: sum over bins of (places in the bin / all) * |accuracy in it - mean confidence in it|.

    The expected calibration error of Guo et al. 2017, eq. 3 (after Naeini et al. 2015): the confidence is the largest
    p, the bins ((i - 1) / bins, i / bins] are of one width, 15 as in the paper. 0 is best.
    """
    if bins < 1:
        raise UsageError(f"calibration_error: bins = {bins}: at least 1")
    logits, label = labelled(judged)
    confidence, guess = logits.softmax(dim=1).double().max(dim=1)
    place = (confidence * bins).ceil().long().clamp(1, bins) - 1
    # count * |accuracy - confidence| of a bin is |right ones - sum of confidences|
    gap = torch.zeros(bins, dtype=torch.float64).index_add_(0, place, (guess == label).double() - confidence)
    return {"calibration_error": float(gap.abs().sum() / len(label))}


def _nll(logits: Tensor, label: Tensor) -> float:
    return float(F.cross_entropy(logits, label, reduction="none").double().mean())


def _share(true: Tensor) -> float:
    return float(true.double().mean())
