"""Schedules: values by hand, and torch's own one-cycle as an independent reference."""

from __future__ import annotations

import math
import warnings

import pytest
import torch

from kdcache.config import TrainConfig
from kdcache.student.schedule import rate_factor


def factors(steps: int, **keys: object) -> list[float]:
    train = TrainConfig.model_validate(keys)
    return [rate_factor(train, step, steps) for step in range(steps)]


def test_constant() -> None:
    assert factors(3) == [1.0, 1.0, 1.0]


def test_cosine_begins_at_one_and_would_end_at_zero() -> None:
    assert factors(4, schedule="cosine") == pytest.approx(
        [1.0, (1 + math.sqrt(0.5)) / 2, 0.5, (1 - math.sqrt(0.5)) / 2]
    )
    assert rate_factor(TrainConfig(schedule="cosine"), 4, 4) == pytest.approx(0.0)


def test_step_falls_at_its_milestones() -> None:
    assert factors(8, schedule="step", milestones=(0.5, 0.75), gamma=0.1) == pytest.approx(
        [1, 1, 1, 1, 0.1, 0.1, 0.01, 0.01]
    )


def test_warmup_rises_linearly_and_stays() -> None:
    assert factors(10, schedule="warmup", warmup=0.4) == pytest.approx([0.25, 0.5, 0.75, 1, 1, 1, 1, 1, 1, 1])


@pytest.mark.parametrize(("steps", "warmup"), [(40, 0.3), (97, 0.3), (200, 0.05), (10, 0.5)])
def test_one_cycle_is_that_of_torch(steps: int, warmup: float) -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1.0, total_steps=steps, pct_start=warmup)
        expected = []
        for _ in range(steps):
            expected.append(optimizer.param_groups[0]["lr"])
            if len(expected) < steps:
                schedule.step()
    assert factors(steps, schedule="one_cycle", warmup=warmup) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("schedule", ["constant", "cosine", "step", "one_cycle", "warmup"])
@pytest.mark.parametrize("steps", [1, 2, 3, 1000])
@pytest.mark.parametrize("warmup", [0.0, 0.05, 0.99])
def test_every_factor_is_above_zero_and_at_most_one(schedule: str, steps: int, warmup: float) -> None:
    assert all(0 < factor <= 1 for factor in factors(steps, schedule=schedule, warmup=warmup))
