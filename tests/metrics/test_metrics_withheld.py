"""Accuracy without what a network was told."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from judged_rows import rows
from torch import Tensor

from kdcache.errors import UsageError
from kdcache.metrics import fields_read, measure


def told(batch: dict[str, Tensor]) -> Mapping[str, Tensor]:
    """The class that the fact says; where it says none, that of the input's sign."""
    sign = batch["input"].float()
    return {"logits": 10 * batch["fact"] + torch.stack([-sign, sign], dim=1)}


INPUT = torch.tensor([-1.0, 1.0, 1.0, -1.0])
LABEL = torch.tensor([0, 1, 0, 1])
FACT = torch.eye(2)[LABEL]


def test_the_fact_is_hidden_and_the_rest_is_not() -> None:
    told_all = told({"input": INPUT, "fact": FACT})
    judged = rows(told_all, told, input=INPUT, label=LABEL, fact=FACT)
    assert measure(["accuracy", "withheld_accuracy"], judged) == {"accuracy": 1.0, "withheld_accuracy": 0.5}
    assert torch.equal(judged.rows["fact"], torch.eye(2)[LABEL])


def test_more_rows_than_a_batch() -> None:
    many = {"input": INPUT.repeat(200), "label": LABEL.repeat(200), "fact": FACT.repeat(200, 1)}
    judged = rows(told({"input": many["input"], "fact": many["fact"]}), told, **many)
    assert measure(["withheld_accuracy"], judged) == {"withheld_accuracy": 0.5}


def test_a_network_that_is_told_nothing_has_its_accuracy() -> None:
    judged = rows({"logits": torch.eye(2)[[0, 0, 0, 1]]}, input=INPUT, label=LABEL)
    assert measure(["withheld_accuracy"], judged) == {"withheld_accuracy": 0.75}


def test_what_is_withheld_has_a_name() -> None:
    judged = rows(told({"input": INPUT, "fact": FACT}), told, {"withheld": "other"}, input=INPUT, label=LABEL)
    assert measure(["withheld_accuracy"], judged) == {"withheld_accuracy": 1.0}
    strange = rows({"logits": FACT}, options={"withheld": 3}, input=INPUT, label=LABEL)
    with pytest.raises(UsageError, match="withheld = 3"):
        measure(["withheld_accuracy"], strange)


def test_it_reads_the_labels_and_the_inputs() -> None:
    assert fields_read(["withheld_accuracy"], ["input", "fact"]) == ("input", "fact", "label")
