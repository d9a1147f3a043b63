"""How a recipe's metrics are found, checked and called."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from judged_rows import classes, rows

from kdcache.errors import UsageError
from kdcache.metrics import METRICS, fields_read, find_metric, measure, measured

LOGITS = [[1.0, 0.0], [0.0, 1.0]]


@pytest.fixture(autouse=True)
def _own_metrics(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    yield
    sys.modules.pop("own_metrics", None)


@pytest.mark.parametrize("name", METRICS)
def test_every_metric_is_called_as_its_first_number(name: str) -> None:
    metric = METRICS[name]
    assert metric.keys[0] == name == metric.function.__name__
    assert metric.fields
    assert metric.function.__doc__
    assert all(f'"{key}"' in metric.function.__doc__ for key in metric.keys)


def test_worse_is_lower_for_what_measures_errors() -> None:
    lower = {"brier", "calibration_error", "mae", "mse", "nll", "perplexity"}
    assert {name for name, metric in METRICS.items() if not metric.higher} == lower


def test_options_of_one_name_are_of_one_kind() -> None:
    """They are given once for all metrics."""
    kinds: dict[str, Any] = {}
    for metric in METRICS.values():
        for name, parameter in metric.options.items():
            assert kinds.setdefault(name, parameter.annotation) == parameter.annotation


def test_several_metrics_in_order() -> None:
    found = measure(["nll", "accuracy"], classes(LOGITS, [0, 0]))
    assert list(found) == ["nll", "accuracy"]
    assert found["accuracy"] == 0.5


class TestAnotherOutput:
    def test_its_labels_and_its_keys(self) -> None:
        judged = rows(
            {"logits": torch.tensor(LOGITS), "coarse": torch.tensor(LOGITS)},
            label=torch.tensor([0, 1]),
            label__coarse=torch.tensor([1, 1]),
        )
        assert measure(["accuracy", "accuracy.coarse"], judged) == {"accuracy": 1.0, "accuracy.coarse": 0.5}
        metric = find_metric("accuracy.coarse")
        assert metric.fields == ("label.coarse",)
        assert metric.keys == ("accuracy.coarse",)
        assert find_metric("mse.depth").fields == ("target.depth",)
        assert find_metric("mse.depth").higher is False

    def test_its_options(self) -> None:
        judged = rows({"coarse": torch.tensor(LOGITS)}, label__coarse=torch.tensor([1, 1]), options={"bins": 1})
        assert find_metric("calibration_error.coarse").options["bins"].annotation is int
        # accuracy 1/2 against one bin's confidence, softmax(1, 0)
        expected = torch.tensor([1.0, 0.0]).softmax(0)[0].item() - 0.5
        assert measure(["calibration_error.coarse"], judged) == {
            "calibration_error.coarse": pytest.approx(expected, rel=1e-6)
        }

    def test_attacks_go_through_it(self) -> None:
        def network(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
            margin = batch["input"].float().sum(dim=1) - 200
            return {"logits": torch.full((len(margin), 3), torch.nan), "coarse": torch.stack([-margin, margin], 1)}

        values = torch.tensor([[104, 104], [150, 150]], dtype=torch.uint8)
        judged = rows({"coarse": torch.zeros(2, 2)}, network, input=values, label__coarse=torch.ones(2).long())
        found = measure(["pgd_accuracy.coarse"], judged)
        assert found == {"pgd_accuracy.coarse": 0.5, "pgd_clean_accuracy.coarse": 1.0}

    def test_what_is_not_there(self) -> None:
        with pytest.raises(UsageError, match=r"metric accuracy\.coarse: it needs 'label\.coarse', .* have \['label'\]"):
            measure(["accuracy.coarse"], classes(LOGITS, [0, 0]))
        judged = classes(LOGITS, [0, 0], label__coarse=torch.tensor([0, 0]))
        with pytest.raises(UsageError, match=r"gives \['logits'\], and a metric needs its output 'coarse'"):
            measure(["accuracy.coarse"], judged)


class TestOnesOwn:
    def test_a_function(self) -> None:
        found = measure(["own_metrics:labels", "accuracy"], classes(LOGITS, [0, -1]))
        assert found == {"labels": 1.0, "rows": 2.0, "accuracy": 1.0}
        assert find_metric("own_metrics:labels").higher is True

    def test_its_options(self) -> None:
        judged = rows({"logits": torch.tensor(LOGITS)}, label=torch.zeros(2), options={"factor": 3.0})
        assert measure(["own_metrics:scaled"], judged) == {"scaled": 6.0}

    def test_a_metric_says_what_it_needs(self) -> None:
        metric = find_metric("own_metrics:BIAS")
        assert metric.fields == ("target",)
        assert metric.higher is False
        assert measure(["own_metrics:BIAS"], rows({"logits": torch.ones(3, 1)}, target=torch.zeros(3, 1))) == {
            "bias": 1.0
        }

    @pytest.mark.parametrize(
        ("name", "message"),
        [
            ("own_metrics:lables", r"has no such function; did you mean 'labels'"),
            ("own_metrics:NUMBER", r"has no such function"),
            ("no_such_module_here:f", r"'no_such_module_here' cannot be imported \(ModuleNotFoundError"),
            (":f", r"cannot be imported"),
            ("acuracy", r"metric 'acuracy' is not known; did you mean 'accuracy' or"),
            ("accuracy.", r"'accuracy\.' is not known"),
            ("", r"metric '' is not known"),
        ],
    )
    def test_what_is_not_there(self, name: str, message: str) -> None:
        with pytest.raises(UsageError, match=message):
            find_metric(name)

    @pytest.mark.parametrize(
        ("name", "message"),
        [
            ("own_metrics:broken", "metric own_metrics:broken: ZeroDivisionError: of its own"),
            ("own_metrics:wrong", "metric own_metrics:wrong: gives list, not a dictionary of numbers"),
            ("own_metrics:none", "metric own_metrics:none: gives what is no number"),
        ],
    )
    def test_what_goes_wrong_inside(self, name: str, message: str) -> None:
        with pytest.raises(UsageError, match=message):
            measure([name], classes(LOGITS, [0, 0]))


@pytest.mark.parametrize(
    ("names", "options", "message"),
    [
        (["accuracy"], {"bins": 3}, "no metric of accuracy takes the option bins"),
        (["calibration_error"], {"bin": 3}, "takes the option bin; did you mean 'bins'"),
        (["calibration_error"], {"bins": 1.5}, r"metric option bins = 1\.5: "),
        (["calibration_error"], {"bins": "3"}, "metric option bins = '3': "),
        (["agreement"], {}, r"metric agreement: it needs 'teacher', and the evaluation rows have \['label'\]"),
        (["accuracy", "accuracy"], {}, None),
        (["top5"], {}, "top5: of 2 classes"),
    ],
)
def test_checks(names: list[str], options: dict[str, Any], message: str | None) -> None:
    judged = rows({"logits": torch.tensor(LOGITS)}, options=options, label=torch.tensor([0, 0]))
    if message is None:
        assert measure(names, judged) == {"accuracy": 0.5}
        return
    with pytest.raises(UsageError, match=message):
        measure(names, judged)


def test_one_pass_over_batches() -> None:
    batches = [{"input": torch.tensor(LOGITS), "label": torch.tensor([0, 0])}] * 3
    calls = []

    def network(batch: Any) -> dict[str, torch.Tensor]:
        calls.append(len(batch["input"]))
        return {"logits": batch["input"] * 2}

    assert measured(["accuracy", "macro_f1"], {}, network, batches) == {
        "accuracy": 0.5,
        "macro_f1": pytest.approx((2 * 3 / (6 + 3) + 0) / 2),
    }
    assert calls == [2, 2, 2]
    assert fields_read(["accuracy", "mse.depth"], ["input"]) == ("input", "label", "target.depth")
