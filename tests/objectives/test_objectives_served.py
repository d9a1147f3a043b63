"""What a stored field can serve, and the error that the store states of itself."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

from kdcache.arrays import Array
from kdcache.codecs import CODECS, QuantisedLogits, SampledLogits, SparseLogits
from kdcache.config import ObjectiveConfig
from kdcache.errors import StoreDamaged, UsageError
from kdcache.objectives import OBJECTIVES, Objective, compose
from kdcache.objectives.served import CENTRED_CODECS, LOG_Z_LIMIT, SAMPLED_CODECS, SPARSE_CODECS


@dataclass(frozen=True)
class Stored:
    codec: str = "topk"
    array: Array = field(default_factory=lambda: Array("float32", (10,)))
    configuration: dict[str, Any] = field(default_factory=lambda: {"k": 4})


def made(facts: Any, codec: str = "topk", **config: Any) -> Objective:
    fields = {"logits": Stored(codec), "label": Stored("dense", Array("int64"), {})}
    return compose([ObjectiveConfig(**{"name": "kd", **config})], fields, 10, facts)


def facts(**errors: float) -> dict[str, Any]:
    return {
        "fidelity": {
            "logits": {"kl": {"1": 0.1}, "log_z_error": {k[1:].replace("_", "."): v for k, v in errors.items()}}
        }
    }


GRID = facts(t1=0.0, t1_5=0.01, t2=0.03, t4=0.2, t20=0.04)
CURE = r"anchor .*, a larger k, or lowrank or dense"


class TestStatedError:
    @pytest.mark.parametrize("temperature", [1.0, 1.5, 1.7, 2.0, 20.0])
    def test_within(self, temperature: float) -> None:
        assert made(GRID, temperature=temperature).fields == ("logits",)

    @pytest.mark.parametrize("temperature", [2.01, 3.0, 4.0, 5.0, 19.9])
    def test_too_far_off(self, temperature: float) -> None:
        with pytest.raises(
            UsageError,
            match=rf"objective kd: temperature = {temperature:g}, and logits .*'topk': there .* off by 0\.2 nats "
            rf"\(measured on its teacher at T = 4\), more than 0\.05: dump the field with {CURE}",
        ):
            made(GRID, temperature=temperature)

    def test_the_limit_itself_is_served(self) -> None:
        assert made(facts(t1=0.0, t2=LOG_Z_LIMIT), temperature=2.0).fields == ("logits",)
        with pytest.raises(UsageError, match="off by"):
            made(facts(t1=0.0, t2=LOG_Z_LIMIT * 1.0001), temperature=2.0)

    def test_an_error_that_is_no_number_is_too_large(self) -> None:
        with pytest.raises(UsageError, match="off by nan"):
            made(facts(t1=0.0, t2=float("nan")), temperature=1.5)

    @pytest.mark.parametrize("temperature", [20.5, 100.0])
    def test_beyond_what_was_measured(self, temperature: float) -> None:
        with pytest.raises(
            UsageError, match=rf"measured for temperatures from 1 to 20: take one of these, or .*{CURE}"
        ):
            made(GRID, temperature=temperature)

    @pytest.mark.parametrize("name", ["soft_ce", "reverse_kl", "jsd", "dkd"])
    def test_every_objective_that_softens(self, name: str) -> None:
        with pytest.raises(UsageError, match="off by"):
            made(GRID, name=name, temperature=4.0)

    @pytest.mark.parametrize("name", ["hard_label", "mse_logits"])
    def test_those_that_do_not_are_served(self, name: str) -> None:
        assert made(facts(t1=9.0, t2=9.0), name=name).fields == ("logits",)

    @pytest.mark.parametrize("codec", ["dense", "lowrank", "quant"])
    def test_other_codecs_have_no_such_error(self, codec: str) -> None:
        assert made(GRID, codec, temperature=4.0).fields == ("logits",)

    @pytest.mark.parametrize(
        "silent", [None, {}, {"fidelity": {}}, {"fidelity": {"logits": {"kl": {}}}}, {"fidelity": {"other": {}}}]
    )
    def test_stores_that_say_nothing_are_served(self, silent: Any) -> None:
        assert made(silent, temperature=4.0).fields == ("logits",)

    @pytest.mark.parametrize("wrong", [3, "x", [1], {"a": 0.1}, {"1": "x"}, {"1": None}, {"1": [0.1]}])
    def test_nonsense_is_named(self, wrong: Any) -> None:
        with pytest.raises(StoreDamaged, match=r"facts\.fidelity\.logits\.log_z_error"):
            made({"fidelity": {"logits": {"log_z_error": wrong}}}, temperature=2.0)


def test_every_codec_is_of_one_kind() -> None:
    kinds = (SPARSE_CODECS, SAMPLED_CODECS, CENTRED_CODECS)
    assert sum(map(len, kinds)) == len(frozenset().union(*kinds))
    assert frozenset().union(*kinds) <= set(CODECS)


CONFIGURATIONS: dict[str, dict[str, Any]] = {
    "dense": {"dtype": "float32"},
    "lowrank": {"bytes": 16},
    "quant": {"bits": 8},
    "sampled": {"draws": 4096, "temperature": 3.0},
    "threshold": {"k": 20, "temperature": 3.0},
    "topk": {"k": 5, "dtype": "float32"},
}


@pytest.mark.parametrize("codec", sorted(CODECS))
def test_a_codec_decodes_to_what_composing_takes_it_for(codec: str) -> None:
    array, room = Array("float32", (20,)), CODECS[codec]
    configuration = room.configure(CONFIGURATIONS[codec], array)
    basis = torch.randn(3, 20, generator=torch.Generator().manual_seed(2))
    teacher = 4 + torch.randn(64, 3, generator=torch.Generator().manual_seed(3)) @ basis
    tables = {name: torch.from_numpy(table) for name, table in room.fit(teacher, configuration).items()}
    encoded = room.encode(teacher, configuration, tables, keys=torch.arange(64))
    decoded = room.decode(encoded, array, configuration, tables)
    assert isinstance(decoded, SparseLogits) == (codec in SPARSE_CODECS)
    assert isinstance(decoded, SampledLogits) == (codec in SAMPLED_CODECS)
    dense = decoded.dense() if isinstance(decoded, QuantisedLogits) else decoded
    if isinstance(dense, torch.Tensor):
        assert bool((dense.mean(1).abs() < 1e-3).all()) == (codec in CENTRED_CODECS)
    fields = {"logits": Stored(codec, array, configuration)}
    objective = compose([ObjectiveConfig(name="kd", temperature=3.0)], fields, 20)
    loss, _ = objective({"logits": teacher - 9}, {"logits": decoded}, objective.adapters({}))
    away, _ = objective({"logits": -teacher}, {"logits": decoded}, objective.adapters({}))
    # An estimate is not the teacher itself: its KL has the variance of the weights.
    assert loss.item() == pytest.approx(0, abs=(0.2 if codec in SAMPLED_CODECS else 0.02) * away.item())


def test_draws_serve_what_is_linear_in_the_teacher() -> None:
    assert sorted(name for name, spec in OBJECTIVES.items() if spec.sampled) == [
        "deit",
        "hard_label",
        "kd",
        "soft_ce",
    ]
