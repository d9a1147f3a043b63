"""Attacks on networks whose weakest point is known, and on real digits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from judged_rows import rows
from torch import Tensor, nn

from kdcache.errors import UsageError
from kdcache.metrics import Judged
from kdcache.metrics.robustness import fgsm_accuracy, noise_accuracy, pgd_accuracy


def linear(batch: dict[str, Tensor]) -> Mapping[str, Tensor]:
    """Class 1 if the sum of the two values is above 200: each step of both values by e moves the margin by 2 e."""
    margin = batch["input"].float().sum(dim=1) - 200
    return {"logits": torch.stack([-margin, margin], dim=1)}


def points(*sums: float, options: Any = None) -> Judged:
    """One row of uint8 for each sum of two equal values, with the right label."""
    values = torch.tensor([[total / 2] * 2 for total in sums]).to(torch.uint8)
    label = torch.tensor([int(total > 200) for total in sums])
    return rows({"logits": torch.zeros(len(sums), 2)}, linear, options, input=values, label=label)


@pytest.mark.parametrize("attack", [pgd_accuracy, fgsm_accuracy])
def test_a_row_falls_if_it_is_nearer_than_the_radius(attack: Any) -> None:
    """Margins of 4, 8, 20, 12 and 40: with a radius of 8 the margin can be moved by 16."""
    name = attack.__name__
    judged = points(204, 208, 220, 188, 160)
    clean = name.replace("_accuracy", "_clean_accuracy")
    assert attack(judged, epsilon=8.0) == {name: 0.4, clean: 1.0}
    assert attack(judged, epsilon=1.0) == {name: 1.0, clean: 1.0}
    far = {"step_size": 8.0} if attack is pgd_accuracy else {}
    assert attack(judged, epsilon=30.0, **far) == {name: 0.0, clean: 1.0}


def test_the_range_of_the_inputs_is_kept() -> None:
    """Values 0 to 100 only: the right class of two values of 100 is 0, and none above 100 may be given."""
    judged = points(200, 198)
    tight = Judged(judged.outputs, judged.rows, linear, input_range=(0.0, 100.0))
    assert pgd_accuracy(tight, epsilon=255.0, step_size=99.0)["pgd_accuracy"] == 1.0
    assert fgsm_accuracy(tight, epsilon=255.0)["fgsm_accuracy"] == 1.0
    wide = Judged(judged.outputs, judged.rows, linear, input_range=(0.0, 101.0))
    assert pgd_accuracy(wide, epsilon=255.0, step_size=99.0)["pgd_accuracy"] == 0.0


def test_the_radius_is_in_parts_of_the_range() -> None:
    """The same inputs as floats from 0 to 1."""
    judged = points(204, 208, 220, 188, 160)

    def scaled(batch: dict[str, Tensor]) -> Mapping[str, Tensor]:
        return linear({**batch, "input": batch["input"] * 255})

    unit = Judged(judged.outputs, {**judged.rows, "input": judged.rows["input"] / 255}, scaled, input_range=(0.0, 1.0))
    assert pgd_accuracy(unit, epsilon=8.0) == pgd_accuracy(judged, epsilon=8.0)


def test_noise_and_rows_by_option() -> None:
    judged = points(*[202.0] * 400, *[20.0] * 400)
    found = noise_accuracy(judged, noise=16.0, attacked_rows=400)
    # The margin of 2 against a deviation of 16 * sqrt(2): the normal distribution's 0.535.
    assert found["noise_accuracy"] == pytest.approx(0.535, abs=0.08)
    assert found["noise_clean_accuracy"] == 1.0
    assert noise_accuracy(judged, noise=16.0, attacked_rows=400) == found
    assert noise_accuracy(judged, noise=16.0)["noise_accuracy"] > found["noise_accuracy"]


def test_unlabelled_rows_are_passed_over() -> None:
    judged = points(204, 160, 204)
    judged.rows["label"][0] = -1  # type: ignore[index]
    assert pgd_accuracy(judged, epsilon=8.0, attacked_rows=1)["pgd_accuracy"] == 1.0
    assert pgd_accuracy(judged, epsilon=8.0)["pgd_accuracy"] == 0.5


def test_in_inference_mode_and_with_frozen_weights() -> None:
    network = nn.Linear(2, 2).requires_grad_(False)
    with torch.inference_mode():
        judged = points(204, 160)
        changed = Judged(judged.outputs, judged.rows, lambda batch: {"logits": network(batch["input"].float() / 255)})
        found = pgd_accuracy(changed)
    assert 0 <= found["pgd_accuracy"] <= 1
    assert network.weight.grad is None


@pytest.fixture(scope="module")
def digits() -> Judged:
    """A small network fitted on 8 x 8 digits of 0 to 16."""
    data = pytest.importorskip("sklearn.datasets").load_digits()
    pictures, label = torch.tensor(data.images, dtype=torch.float32), torch.tensor(data.target)
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    optimiser = torch.optim.Adam(network.parameters(), lr=0.01)
    for _ in range(60):
        loss = nn.functional.cross_entropy(network(pictures[:1200] / 16), label[:1200])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    held = {"input": pictures[1200:].to(torch.uint8), "label": label[1200:]}
    return Judged(
        {"logits": network(pictures[1200:] / 16).detach()},
        held,
        lambda batch: {"logits": network(batch["input"].float() / 16)},
        input_range=(0.0, 16.0),
    )


class TestDigits:
    def test_steps_find_more_than_one_step_and_noise(self, digits: Judged) -> None:
        clean = float((digits.outputs["logits"].argmax(1) == digits.rows["label"]).double().mean())
        pgd = pgd_accuracy(digits, epsilon=24.0, step_size=4.0)
        fgsm, noise = fgsm_accuracy(digits, epsilon=24.0), noise_accuracy(digits, noise=24.0)
        assert pgd["pgd_clean_accuracy"] == fgsm["fgsm_clean_accuracy"] == pytest.approx(clean)
        assert clean > 0.85
        assert pgd["pgd_accuracy"] <= fgsm["fgsm_accuracy"] < noise["noise_accuracy"] <= clean
        assert pgd["pgd_accuracy"] < clean - 0.1

    def test_the_same_every_time(self, digits: Judged) -> None:
        assert pgd_accuracy(digits, epsilon=16.0) == pgd_accuracy(digits, epsilon=16.0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epsilon": 0.0}, r"epsilon = 0\.0"),
        ({"steps": 0}, "steps = 0"),
        ({"step_size": float("nan")}, "step_size = nan"),
        ({"attacked_rows": 0}, "attacked_rows = 0"),
    ],
)
def test_options_out_of_range(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        pgd_accuracy(points(204), **options)


def test_what_cannot_be_attacked() -> None:
    judged = points(204)
    with pytest.raises(UsageError, match="input_range"):
        pgd_accuracy(Judged(judged.outputs, judged.rows, linear, input_range=(1.0, 1.0)))
    judged.rows["label"][0] = -1  # type: ignore[index]
    with pytest.raises(UsageError, match="none of the 1 evaluation rows has a label"):
        fgsm_accuracy(judged)
