"""How good per-pixel classes are."""

from __future__ import annotations

import torch

from kdcache.metrics.judged import Judged
from kdcache.metrics.labelled import labelled

__all__ = ["mean_iou"]


def mean_iou(judged: Judged) -> dict[str, float]:
    """{"mean_iou", "pixel_accuracy"} of logits [N, P, C] and labels [N, P], 0 to 1.

    The intersection over union of a class is TP / (TP + FP + FN) over all pixels of all images together (Everingham et
    al. 2015), and the first number its mean over the classes that are labelled or predicted anywhere, the
    background counting as one. The second is the share of pixels that are right. Pixels labelled -1 are left out.
    """
    logits, label = labelled(judged)
    guess, classes = logits.argmax(dim=1), logits.shape[1]
    hits = torch.bincount(label[guess == label], minlength=classes).double()
    union = torch.bincount(label, minlength=classes) + torch.bincount(guess, minlength=classes) - hits
    return {
        "mean_iou": float((hits / union)[union > 0].mean()),
        "pixel_accuracy": float(hits.sum() / len(label)),
    }
