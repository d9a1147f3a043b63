"""`compose`: what it sums, what it reads, and everything that it refuses before any training."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

from kdcache.arrays import Array
from kdcache.codecs import SparseLogits
from kdcache.config import ObjectiveConfig
from kdcache.errors import UsageError
from kdcache.objectives import OBJECTIVES, Objective, ce, compose, dkd, jsd, kd, mse_logits


@dataclass(frozen=True)
class Stored:
    array: Array
    codec: str = "dense"
    configuration: dict[str, Any] = field(default_factory=dict)


FIELDS = {
    "id": Stored(Array("int64")),
    "input": Stored(Array("uint8", (28, 28))),
    "label": Stored(Array("int64")),
    "logits": Stored(Array("float16", (4,))),
    "second": Stored(Array("float32", (4,)), "topk", {"k": 3}),
    "best": Stored(Array("float32", (4,)), "topk", {"k": 1}),
    "drawn": Stored(Array("float32", (4,)), "sampled", {"temperature": 2.0}),
    "thinned": Stored(Array("float32", (4,)), "threshold", {"temperature": 1.0}),
    "low": Stored(Array("float32", (4,)), "lowrank"),
    "features.map": Stored(Array("float16", (6, 4, 4))),
    "features.vector": Stored(Array("float16", (6,))),
    "features.tokens": Stored(Array("float16", (5, 6))),
}


def made(*configs: dict[str, Any], without: str = "") -> Objective:
    fields = {name: field for name, field in FIELDS.items() if name != without}
    return compose([ObjectiveConfig(**config) for config in configs], fields, 4)


def batch() -> dict[str, torch.Tensor | SparseLogits]:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 4, generator=generator)
    log_p, indices = logits.log_softmax(1).topk(4, 1)
    return {
        "label": torch.tensor([1, -1, 3]),
        "logits": logits.half(),
        "second": SparseLogits(indices, log_p, None, 4),
        "low": logits - logits.mean(1, keepdim=True),
        "features.map": torch.randn(3, 6, 4, 4, generator=generator),
        "features.vector": torch.randn(3, 6, generator=generator),
    }


def student() -> torch.Tensor:
    return torch.randn(3, 4, generator=torch.Generator().manual_seed(1))


def test_sum_of_terms_by_weight() -> None:
    objective = made({"name": "kd", "weight": 0.9, "temperature": 2.0}, {"name": "ce", "weight": 0.1})
    logits, rows = student().requires_grad_(), batch()
    loss, values = objective({"logits": logits}, rows, objective.adapters({}))
    assert list(values) == ["kd", "ce"]
    assert values["kd"].item() == kd(logits, rows["logits"], temperature=2.0).item()
    assert values["ce"].item() == ce(logits, torch.tensor([1, -1, 3])).item()
    assert loss.item() == pytest.approx(0.9 * values["kd"].item() + 0.1 * values["ce"].item())
    assert loss.shape == ()
    assert not any(value.requires_grad for value in values.values())
    loss.backward()
    assert logits.grad is not None


def test_baseline_reads_labels_only() -> None:
    baseline = made({"name": "ce"})
    assert baseline.needs_labels_only
    assert baseline.fields == ("label",)
    assert baseline.taps == {}
    assert not made({"name": "ce"}, {"name": "kd"}).needs_labels_only
    assert not made({"name": "hard_label"}).needs_labels_only


def test_fields_are_read_once() -> None:
    objective = made({"name": "kd"}, {"name": "hard_label"}, {"name": "ce"}, {"name": "kd", "field": "second"})
    assert objective.fields == ("logits", "label", "second")


def test_options_reach_their_functions() -> None:
    logits, rows = student(), batch()
    teacher, label = rows["logits"], rows["label"]
    assert isinstance(label, torch.Tensor)
    objective = made(
        {"name": "dkd", "temperature": 2.0, "alpha": 0.5, "beta": 3.0},
        {"name": "dkd"},
        {"name": "jsd", "beta": 0.2, "temperature": 4.0},
        {"name": "jsd"},
    )
    assert objective.fields == ("logits", "label")
    _, values = objective({"logits": logits}, rows, objective.adapters({}))
    assert values["dkd"] == dkd(logits, teacher, label, temperature=2.0, alpha=0.5, beta=3.0)
    assert values["dkd.1"] == dkd(logits, teacher, label, temperature=1.0, alpha=1.0, beta=8.0)
    assert values["jsd"] == jsd(logits, teacher, temperature=4.0, beta=0.2)
    assert values["jsd.1"] == jsd(logits, teacher, temperature=1.0, beta=0.5)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"temprature": 2.0}, "takes no temprature .*did you mean .*'temperature'"),
        ({"weigth": 2.0}, "takes no weigth .*did you mean .*'weight'"),
        ({"temperature": "hot"}, "temperature = 'hot': it takes float"),
        ({"temperature": True}, "it takes float"),
        ({"temperature": [1.0]}, "it takes float"),
    ],
)
def test_options_are_the_losses_own(config: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        made({"name": "kd", **config})


@pytest.mark.parametrize("name", ["kd", "dkd", "mse_logits"])
def test_logits_of_a_sequence_have_the_shape_of_its_labels(name: str) -> None:
    fields = {
        "label": Stored(Array("int32", (7,))),
        "logits": Stored(Array("float32", (7, 4)), "topk", {"k": 3}),
        "pooled": Stored(Array("float32", (4,))),
        "other": Stored(Array("float32", (5, 4))),
    }
    assert compose([ObjectiveConfig(name=name)], fields, 4).terms[0].shapes[0] == (7, 4)
    for wrong in ("pooled", "other", "label"):
        with pytest.raises(UsageError, match=f"{wrong} is .* the 4 classes at each of the 7 positions"):
            compose([ObjectiveConfig(name=name, field=wrong)], fields, 4)
    del fields["label"]
    if name != "dkd":
        assert compose([ObjectiveConfig(name=name)], fields, 4).fields == ("logits",)


def test_dkd_needs_labels() -> None:
    with pytest.raises(UsageError, match="objective dkd: it needs the labels too, and the store has none; take kd"):
        made({"name": "dkd"}, without="label")


def test_terms_of_one_name_are_numbered() -> None:
    objective = made(
        {"name": "kd"}, {"name": "kd", "temperature": 4.0}, {"name": "ce"}, {"name": "kd", "field": "second"}
    )
    _, values = objective({"logits": student()}, batch(), objective.adapters({}))
    assert list(values) == ["kd", "kd.1", "ce", "kd.2"]
    assert values["kd.2"].item() == pytest.approx(values["kd"].item(), abs=1e-3)


def test_temperature_is_one_unless_given() -> None:
    _, values = (objective := made({"name": "kd"}, {"name": "kd", "temperature": 1.0}))(
        {"logits": student()}, batch(), objective.adapters({})
    )
    assert values["kd"] == values["kd.1"]


def test_term_of_weight_zero_is_reported() -> None:
    objective = made({"name": "ce"}, {"name": "kd", "weight": 0.0})
    loss, values = objective({"logits": student()}, batch(), objective.adapters({}))
    assert loss == values["ce"]
    assert values["kd"] > 0


def test_hints_have_an_adapter_each() -> None:
    objective = made(
        {"name": "hint", "tap": "layer2", "field": "features.map"},
        {"name": "ce"},
        {"name": "hint", "tap": "pooled", "field": "features.vector"},
    )
    assert objective.taps == {"hint": "layer2", "hint.1": "pooled"}
    adapters = objective.adapters({"hint": (3, 8, 8), "hint.1": (5,)})
    assert len(adapters) == 2
    outputs = {"logits": student(), "hint": torch.randn(3, 3, 8, 8), "hint.1": torch.randn(3, 5)}
    rows = batch()
    loss, values = objective(outputs, rows, adapters)
    for name in ("hint", "hint.1"):
        field = rows["features.map" if name == "hint" else "features.vector"]
        assert isinstance(field, torch.Tensor)
        assert values[name] == adapters[name.replace(".", "_")](outputs[name], field)
    loss.backward()
    assert all(parameter.grad is not None for parameter in adapters.parameters())


def test_lowrank_logits_are_compared_centred() -> None:
    objective = made({"name": "mse_logits", "field": "low"}, {"name": "mse_logits"})
    logits, rows = student(), batch()
    assert isinstance(rows["low"], torch.Tensor)
    _, values = objective({"logits": logits}, rows, objective.adapters({}))
    assert values["mse_logits"] == mse_logits(logits, rows["low"], centred=True)
    moved = objective({"logits": logits + 3}, rows, objective.adapters({}))[1]
    assert moved["mse_logits"].item() == pytest.approx(values["mse_logits"].item(), rel=1e-4)
    assert moved["mse_logits.1"] != pytest.approx(values["mse_logits.1"].item(), rel=1e-2)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"name": "kdd"}, "objective 'kdd' is not known; did you mean 'kd'"),
        ({"name": "zzz"}, r"known: adversarial, .*attention, cc, ce, cosine"),
        ({"name": "kd", "field": "logit"}, "no field 'logit'; did you mean 'logits'"),
        ({"name": "kd", "field": "zzz"}, r"no field 'zzz'; known: best, drawn, features.map"),
        (
            {"name": "kd", "field": "features.vector"},
            r"features.vector is float16\[6\]; it needs logits, .* the 4 classes",
        ),
        ({"name": "ce", "temperature": 2.0}, r"objective ce: it takes no temperature \(found 2.0\)"),
        ({"name": "mse_logits", "temperature": 2.0}, "takes no temperature"),
        ({"name": "kd", "tap": "layer2"}, r"takes no tap \(found 'layer2'\)"),
        ({"name": "ce", "field": "logits"}, "reads the labels, not 'logits'"),
        ({"name": "mse_logits", "field": "best"}, "best is stored with codec = 'topk', k = 1: dump .* k = 2 or more"),
        ({"name": "hint", "tap": "x", "field": "second"}, "second is stored with codec = 'topk'"),
        ({"name": "kd", "field": "second", "temperature": 0.5}, 'temperature = 0.5 is below 1.*codec = "dense"'),
        ({"name": "kd", "field": "drawn"}, r"temperature = 1, .*'sampled'.*at T = 2, .*set temperature = 2"),
        ({"name": "soft_ce", "field": "thinned", "temperature": 3.0}, r"= 3, .*'threshold'.*at T = 1, .*\"lowrank\""),
        ({"name": "jsd", "field": "drawn", "temperature": 2.0}, "random draws, .*take kd or soft_ce"),
        ({"name": "reverse_kl", "field": "thinned"}, "random draws, .*take kd or soft_ce"),
        ({"name": "dkd", "field": "thinned"}, "random draws, .*take kd or soft_ce"),
        ({"name": "mse_logits", "field": "thinned"}, "random draws, .*take kd or soft_ce"),
        ({"name": "hint", "tap": "x", "field": "thinned"}, "random draws"),
        ({"name": "jsd", "beta": 1.0}, "beta = 1.0 is the teacher's share"),
        ({"name": "jsd", "beta": 0.0}, "beta = 0.0 is the teacher's share"),
        ({"name": "jsd", "alpha": 1.0}, r"it takes no alpha \(found 1.0\)"),
        ({"name": "kd", "beta": 1.0}, r"it takes no beta \(found 1.0\)"),
        ({"name": "jsd", "field": "second", "temperature": 0.5}, "is below 1"),
        ({"name": "hint", "field": "features.map"}, 'name its module, for instance tap = "layer3"'),
        ({"name": "hint", "tap": "layer2"}, r"name the teacher's feature, field = .*'features.map'"),
        ({"name": "hint", "tap": "layer2", "field": "label"}, r"label is int64\[\]"),
    ],
)
def test_what_cannot_work_is_refused_on_composing(config: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        made(config)


def test_second_term_is_named_by_its_number() -> None:
    with pytest.raises(UsageError, match=r"objective kd\.1: the store has no field"):
        made({"name": "kd"}, {"name": "kd", "field": "zzz"})


def test_store_without_labels_has_no_ce() -> None:
    with pytest.raises(UsageError, match="the store has no labels; take hard_label or kd"):
        made({"name": "ce"}, without="label")


@pytest.mark.parametrize("configs", [(), ({"name": "kd", "weight": 0.0}, {"name": "ce", "weight": 0.0})])
def test_nothing_to_learn_is_refused(configs: tuple[dict[str, Any], ...]) -> None:
    with pytest.raises(UsageError, match="nothing to learn"):
        made(*configs)


class TestCalledWrongly:
    def setup_method(self) -> None:
        self.objective = made({"name": "ce"}, {"name": "hint", "tap": "layer2", "field": "features.map"})
        self.outputs = {"logits": student(), "hint": torch.zeros(3, 3, 8, 8)}

    def test_width_of_the_student(self) -> None:
        outputs = {"logits": torch.zeros(3, 10)}
        with pytest.raises(UsageError, match=r"gives 10 outputs, the store's logits have 4 classes; set .* to 4"):
            self.objective(outputs, batch(), self.objective.adapters({"hint": (3, 8, 8)}))

    def test_field_missing_from_the_batch(self) -> None:
        rows = {"label": torch.tensor([1, -1, 3])}
        with pytest.raises(UsageError, match=r"no 'features.map' in the batch, only \['label'\]: ask the loader"):
            self.objective(self.outputs, rows, self.objective.adapters({"hint": (3, 8, 8)}))

    def test_tap_missing_from_the_outputs(self) -> None:
        with pytest.raises(UsageError, match=r"no 'hint' in the student's outputs, .*{'hint': 'layer2'}"):
            self.objective({"logits": student()}, batch(), self.objective.adapters({"hint": (3, 8, 8)}))

    def test_shape_missing_for_an_adapter(self) -> None:
        with pytest.raises(UsageError, match="no 'hint' in the student's shapes"):
            self.objective.adapters({})

    def test_adapter_missing(self) -> None:
        with pytest.raises(UsageError, match=r"no 'hint' in the adapters, .*objective.adapters"):
            self.objective(self.outputs, batch(), torch.nn.ModuleDict())


def test_every_objective_is_named_for_its_function() -> None:
    for name, spec in OBJECTIVES.items():
        assert spec.function.__name__.lower() == name.replace("_", "" if spec.module else "_")
