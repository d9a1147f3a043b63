"""Mean intersection over union by hand, and against a loop over classes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from judged_rows import classes, rows

from kdcache.metrics.segmentation import mean_iou

A, B, C = [1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]


def test_by_hand() -> None:
    """Class 0: 2 shared of 3; class 1: 1 of 3 (one FP, one FN); class 2 nowhere but where nothing is labelled."""
    judged = classes([[A, A, B], [B, C, A]], [[0, 0, 0], [1, -1, 1]])
    assert mean_iou(judged) == {
        "mean_iou": pytest.approx((2 / 4 + 1 / 3) / 2),
        "pixel_accuracy": pytest.approx(3 / 5),
    }


@pytest.mark.parametrize("seed", range(3))
def test_against_a_loop(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(6, 40, 5, generator=generator)
    label = torch.randint(-1, 5, (6, 40), generator=generator)
    guess, truth = logits.argmax(2).numpy()[label >= 0], label[label >= 0].numpy()
    ious = [((guess == c) & (truth == c)).sum() / ((guess == c) | (truth == c)).sum() for c in range(5)]
    found = mean_iou(rows({"logits": logits}, label=label))
    assert found["mean_iou"] == pytest.approx(np.mean(ious))
    assert found["pixel_accuracy"] == pytest.approx((guess == truth).mean())
