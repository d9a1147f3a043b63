"""Metrics on classes by hand, and against independent loops and scikit-learn."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from judged_rows import classes, rows

from kdcache.errors import UsageError
from kdcache.metrics import METRICS, Judged, find_metric
from kdcache.metrics.classification import (
    accuracy,
    agreement,
    brier,
    calibration_error,
    macro_f1,
    nll,
    perplexity,
    top5,
)

NAMES = [name for name, metric in METRICS.items() if metric.fields == ("label",) and not metric.input]


def drawn(seed: int, count: int = 400, many: int = 7) -> Judged:
    """Confident guesses that are often wrong; a tenth of the rows has no label."""
    generator = torch.Generator().manual_seed(seed)
    label = torch.randint(many, (count,), generator=generator)
    logits = 2 * torch.randn(count, many, generator=generator)
    logits[torch.arange(count), label] += 2
    label[torch.rand(count, generator=generator) < 0.1] = -1
    return rows({"logits": logits}, label=label)


def kept(judged: Judged) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities float64 and labels of the labelled rows."""
    label = judged.rows["label"].numpy()
    logits = judged.outputs["logits"].double().numpy()[label >= 0]
    e = np.exp(logits - logits.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True), label[label >= 0]


def test_accuracy_and_agreement_by_hand() -> None:
    logits = [[1.0, 0.0], [0.0, 1.0], [0.0, 2.0], [3.0, 0.0]]
    judged = classes(logits, [0, 1, 0, -1], teacher=torch.tensor([0, 0, 1, 0]))
    assert accuracy(judged) == {"accuracy": pytest.approx(2 / 3)}
    assert agreement(judged) == {"agreement": 0.75}


def test_positions_count_alike() -> None:
    """Two samples of two positions, one of which has no label."""
    logits = [[[1.0, 0.0], [1.0, 0.0]], [[0.0, 1.0], [1.0, 0.0]]]
    assert accuracy(classes(logits, [[0, 1], [1, -1]])) == {"accuracy": pytest.approx(2 / 3)}


def test_likelihood_by_hand() -> None:
    """p(label) = 3/4 and 1/4."""
    judged = classes([[math.log(3.0), 0.0]] * 2, [0, 1])
    assert nll(judged)["nll"] == pytest.approx((math.log(4 / 3) + math.log(4)) / 2)
    assert perplexity(judged)["perplexity"] == pytest.approx(4 / math.sqrt(3))
    assert brier(judged)["brier"] == pytest.approx((2 * 0.25**2 + 2 * 0.75**2) / 2)


def test_perplexity_of_the_impossible_is_a_number() -> None:
    assert math.isfinite(perplexity(classes([[1e4, 0.0]], [1]))["perplexity"])


def test_macro_f1_by_hand() -> None:
    """Class 0: TP 1, FP 1, FN 1 -> 1/2; class 1: TP 1, FP 1, FN 1 -> 1/2; class 2: FN 0, FP 0 -> left out."""
    judged = classes([[1.0, 0.0, 0.0], [1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 1.0, 0.0]], [0, 1, 1, 0])
    assert macro_f1(judged) == {"macro_f1": 0.5}
    judged = classes([[1.0, 0.0, 0.0], [1.0, 0.0, 0.0]], [0, 2])
    assert macro_f1(judged) == {"macro_f1": pytest.approx((2 / 3 + 0) / 2)}


@pytest.mark.parametrize("seed", range(3))
def test_macro_f1_is_scikit_learns(seed: int) -> None:
    f1_score = pytest.importorskip("sklearn.metrics").f1_score
    judged = drawn(seed, 60, 30)
    p, label = kept(judged)
    assert macro_f1(judged)["macro_f1"] == pytest.approx(f1_score(label, p.argmax(1), average="macro"), rel=1e-12)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("bins", [1, 4, 15])
def test_calibration_error_is_the_papers_sum(seed: int, bins: int) -> None:
    judged = drawn(seed)
    p, label = kept(judged)
    total = 0.0
    for number in range(bins):
        members = [row for row in range(len(p)) if number / bins < p[row].max() <= (number + 1) / bins]
        if members:
            right = sum(p[row].argmax() == label[row] for row in members) / len(members)
            confidence = sum(p[row].max() for row in members) / len(members)
            total += len(members) / len(p) * abs(right - confidence)
    assert calibration_error(judged, bins=bins)["calibration_error"] == pytest.approx(total, abs=1e-6)


def test_calibration_error_by_hand() -> None:
    """Confidence 3/4 in all four, three of them right: none. Of the two confidences 3/4 and 9/10, both right: 0.175."""
    sure = [math.log(3.0), 0.0]
    assert calibration_error(classes([sure] * 4, [0, 0, 0, 1]))["calibration_error"] == pytest.approx(0, abs=1e-7)
    judged = classes([sure, [math.log(9.0), 0.0]], [0, 0])
    assert calibration_error(judged)["calibration_error"] == pytest.approx((0.25 + 0.1) / 2)


@pytest.mark.parametrize("seed", range(3))
def test_against_loops(seed: int) -> None:
    judged = drawn(seed)
    p, label = kept(judged)
    rank = [(p[row] > p[row, label[row]]).sum() for row in range(len(p))]
    assert top5(judged)["top5"] == pytest.approx(np.mean([place < 5 for place in rank]))
    assert accuracy(judged)["accuracy"] == pytest.approx(np.mean([place == 0 for place in rank]))
    expected = np.mean([((p[row] - np.eye(7)[label[row]]) ** 2).sum() for row in range(len(p))])
    assert brier(judged)["brier"] == pytest.approx(expected, abs=1e-6)
    assert nll(judged)["nll"] == pytest.approx(-np.mean(np.log(p[np.arange(len(p)), label])), rel=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_order_and_unlabelled_rows_do_not_matter(name: str) -> None:
    judged = drawn(5)
    metric = find_metric(name)
    expected = metric.function(judged)
    order = torch.randperm(400, generator=torch.Generator().manual_seed(6))
    order = order[judged.rows["label"][order] >= 0]
    again = metric.function(rows({"logits": judged.outputs["logits"][order]}, label=judged.rows["label"][order]))
    assert again == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("name", NAMES)
def test_what_cannot_be_judged(name: str) -> None:
    function: Callable[[Judged], dict[str, float]] = find_metric(name).function
    with pytest.raises(UsageError, match="none of the 2 evaluation rows has a label"):
        function(classes([[0.0] * 9] * 2, [-1, -1]))
    with pytest.raises(UsageError, match=r"logits are \[1, 9\] and label is torch.int64 \[1, 2\]"):
        function(classes([[0.0] * 9], [[0, 1]]))
    with pytest.raises(UsageError, match="label goes up to 9, and the network has 9 outputs"):
        function(classes([[0.0] * 9], [9]))
    with pytest.raises(UsageError, match=r"have \['other'\], and a metric needs their 'label'"):
        function(rows({"logits": torch.zeros(1, 9)}, other=torch.zeros(1)))
    with pytest.raises(UsageError, match=r"gives \['mask'\], and a metric needs its output 'logits'"):
        function(rows({"mask": torch.zeros(1, 9)}, label=torch.zeros(1)))


def test_options_and_classes_out_of_range() -> None:
    with pytest.raises(UsageError, match="of 5 classes the label is always among the best 5"):
        top5(classes([[0.0] * 5], [0]))
    with pytest.raises(UsageError, match="bins = 0"):
        calibration_error(classes([[0.0] * 5], [0]), bins=0)
