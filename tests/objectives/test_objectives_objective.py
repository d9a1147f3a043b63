"""The sum of terms fused with the student's last layer: the same numbers as unfused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from objectives_reference import drawn, head_inputs, quantised, sparse
from torch import Tensor, nn

from kdcache.arrays import Array
from kdcache.codecs import Targets
from kdcache.config import ObjectiveConfig
from kdcache.errors import UsageError
from kdcache.objectives import Objective, compose


class Stored:
    def __init__(self, codec: str, shape: tuple[int, ...] = (11,), **configuration: Any) -> None:
        self.array, self.codec, self.configuration = Array("float32", shape), codec, configuration


CLASSES, ROWS, WIDTH = 11, 13, 6
FIELDS = {
    "label": Stored("dense", ()),
    "logits": Stored("topk", k=4),
    "drawn": Stored("sampled", temperature=2.0),
    "codes": Stored("quant", bits=8),
    "features.pooled": Stored("dense", (5,)),
}


def composed(*configs: dict[str, Any]) -> Objective:
    return compose([ObjectiveConfig(**config) for config in configs], FIELDS, CLASSES)


def batch(labelled: bool = True) -> dict[str, Targets]:
    values = np.random.default_rng(9).normal(0, 2, (ROWS, CLASSES))
    label = torch.from_numpy(values.argmax(1))
    if not labelled:
        label[[0, 1, 2, 5, 12]] = -1  # the first chunk has no label at all
    return {
        "label": label,
        "logits": sparse(values, 4),
        "drawn": drawn(values, 2.0, 9, np.random.default_rng(0))[0],
        "codes": quantised(values)[0],
        "features.pooled": torch.randn(ROWS, 5, generator=torch.Generator().manual_seed(4)),
    }


def network() -> tuple[Tensor, nn.Linear]:
    hidden, weight, bias = head_inputs(ROWS, WIDTH, CLASSES, dtype=torch.float32)
    head = nn.Linear(WIDTH, CLASSES)
    with torch.no_grad():
        head.weight.copy_(weight)
        head.bias.copy_(bias)
    return hidden, head


class TestFused:
    configs = (
        {"name": "kd", "weight": 0.7, "temperature": 2.0},
        {"name": "ce", "weight": 0.3},
        {"name": "dkd", "weight": 0.5, "temperature": 4.0, "beta": 2.0},
        {"name": "kd", "field": "drawn", "temperature": 2.0},
        {"name": "jsd", "field": "codes", "weight": 0.0, "beta": 0.2},
        {"name": "reverse_kl"},
        {"name": "mse_logits"},
        {"name": "hard_label", "field": "codes"},
    )

    @pytest.mark.parametrize("chunk", [1, 3, 13, 50, None])
    @pytest.mark.parametrize("labelled", [True, False])
    def test_as_unfused(self, chunk: int | None, labelled: bool) -> None:
        objective, rows, (hidden, head) = composed(*self.configs), batch(labelled), network()
        nothing = objective.adapters({})
        found, values = objective.fused(hidden, head, rows, nothing, chunk)
        expected, terms = objective({"logits": head(hidden)}, rows, nothing)
        assert list(values) == list(terms)
        for name, value in values.items():
            assert value.item() == pytest.approx(terms[name].item(), rel=1e-5), name
            assert not value.requires_grad
        torch.testing.assert_close(found, expected)
        asked = (hidden, head.weight, head.bias)
        ours, theirs = (torch.autograd.grad(value, asked) for value in (found, expected))
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)

    def test_features_are_compared_beside(self) -> None:
        configs = ({"name": "hint", "tap": "body", "field": "features.pooled", "weight": 2.0}, {"name": "kd"})
        objective, rows, (hidden, head) = composed(*configs), batch(), network()
        torch.manual_seed(0)
        adapters = objective.adapters({"hint": (WIDTH,)})
        found, values = objective.fused(hidden, head, rows, adapters, 4, outputs={"hint": hidden})
        expected, terms = objective({"logits": head(hidden), "hint": hidden}, rows, adapters)
        assert list(values) == ["hint", "kd"]
        torch.testing.assert_close(values, terms)
        asked = (hidden, head.weight, *adapters.parameters())
        torch.testing.assert_close(torch.autograd.grad(found, asked), torch.autograd.grad(expected, asked))
        with pytest.raises(UsageError, match="no 'hint' in the student's outputs"):
            objective.fused(hidden, head, rows, adapters, 4)

    def test_no_rows(self) -> None:
        objective, (hidden, head) = composed(*self.configs), network()
        none = {name: entry[:0] for name, entry in batch().items()}
        loss, values = objective.fused(hidden[:0], head, none, objective.adapters({}), 4)
        loss.backward()
        assert loss.item() == 0
        assert list(values) == [term.name for term in objective.terms]
        assert hidden.grad is not None

    def test_wrong_operands(self) -> None:
        objective, (hidden, head) = composed({"name": "kd"}), network()
        with pytest.raises(UsageError, match="gives 7 outputs, the store's logits have 11 classes"):
            objective.fused(hidden, nn.Linear(WIDTH, 7), batch(), objective.adapters({}))
        with pytest.raises(UsageError, match="objective kd: 13 rows of targets for 5 hidden states"):
            objective.fused(hidden[:5], head, batch(), objective.adapters({}))
        with pytest.raises(UsageError, match="no 'logits' in the batch"):
            objective.fused(hidden, head, {}, objective.adapters({}))
