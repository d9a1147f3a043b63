"""Fits of every family: named outputs, several inputs and levels, opponents, memories, metrics of one's own."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from command import forked, one_error_line
from safetensors.torch import load_file
from student_runs import AGAINST, BANKS, CE, KD, dropout_net, small
from torch.optim.optimizer import register_optimizer_step_pre_hook

from kdcache.config import ObjectiveConfig
from kdcache.errors import TrustError, UsageError
from kdcache.models import build_model
from kdcache.objectives.irg import irg
from kdcache.student import evaluate_run, read_metrics
from kdcache.student.data import open_data
from kdcache.student.module import network_outputs
from kdcache.taps import tap_outputs

CNN: dict[str, Any] = {"model": "zoo:cnn", "args": {"channels": [4, 8], "hidden": 16}}
IRG = ObjectiveConfig(
    name="irg", tap=("layers.0", "layers.1"), output=("logits",), field=("features.shallow", "features.deep", "logits")
)
REVIEW = ObjectiveConfig(name="review", tap=("layers.0", "hidden"), field=("features.shallow", "features.vector"))
TOLD: dict[str, Any] = {
    "model": "student_runs:told",
    "args": {},
    "inputs": ("input", "fact"),
    "objective": [
        ObjectiveConfig(name="ce"),
        ObjectiveConfig(name="mse", output=("scores",), field=("scores",), weight=3.0),
    ],
}


def exported(out: Path) -> set[str]:
    return set(load_file(out / "model.safetensors"))


def test_a_network_of_two_inputs_and_named_outputs(rich_store: Path, digits_eval: Path, tmp_path: Path) -> None:
    small(rich_store, tmp_path, epochs=8, lr=0.01, metrics=("accuracy", "nll"), eval_store=rich_store, **TOLD)
    rows = read_metrics(tmp_path)
    first, last = rows[0]["terms"], rows[-2]["terms"]
    assert set(first) == {"ce", "mse"}
    assert last["ce"] < first["ce"] / 2
    assert last["mse"] < first["mse"] / 2
    assert rows[0]["loss"] == pytest.approx(first["ce"] + 3 * first["mse"], rel=1e-5)
    with pytest.raises(TrustError, match="student_runs:told"):
        evaluate_run(tmp_path, rich_store)
    found = evaluate_run(tmp_path, rich_store, allow_import=True)
    assert found["accuracy"] == rows[-1]["accuracy"] > 0.5
    assert found["nll"] == pytest.approx(rows[-1]["nll"])
    with pytest.raises(UsageError, match=r"there is no 'fact', only id, input, label"):
        evaluate_run(tmp_path, digits_eval, allow_import=True)
    with pytest.raises(UsageError, match=r"there is no 'fact', only id, input, label"):
        small(digits_eval, tmp_path / "other", **{**TOLD, "objective": CE})


def test_an_output_that_the_network_does_not_give_is_told(rich_store: Path, tmp_path: Path) -> None:
    objective = [ObjectiveConfig(name="mse", output=("score",), field=("scores",))]
    with pytest.raises(UsageError, match=r"no 'score' in the student's outputs, only \['logits', 'scores'\]"):
        small(rich_store, tmp_path, **{**TOLD, "objective": objective})


def test_levels_are_compared_as_lists(rich_store: Path, tmp_path: Path) -> None:
    """The first step's value is that of the function on the network as it was built."""
    small(rich_store, tmp_path, steps=1, batch_size=300, objective=[*KD, IRG, REVIEW], **CNN)
    terms = read_metrics(tmp_path)[0]["terms"]
    assert set(terms) == {"kd", "ce", "irg", "review"}
    with open_data([rich_store]) as data:
        torch.manual_seed(0)
        network = build_model(CNN["model"], CNN["args"], input=data.input, outputs=10)
        taps = {"0": "layers.0", "1": "layers.1"}
        rows = {
            name: torch.from_numpy(data.readers[0].read_column(name))
            for name in ("input", "features.shallow", "features.deep", "logits")
        }
        with torch.no_grad(), tap_outputs(network, taps) as tapped:
            logits = network_outputs(network, data.input_spec(), ("input",), rows)["logits"]
        expected = irg([tapped["0"], tapped["1"], logits], [rows[str(name)] for name in IRG.field or ()])
    assert terms["irg"] == pytest.approx(expected.item(), rel=1e-4)
    assert exported(tmp_path) == set(network.state_dict())


def test_levels_that_do_not_pair_are_refused(rich_store: Path, tmp_path: Path) -> None:
    uneven = IRG.model_copy(update={"tap": ("layers.0",)})
    with pytest.raises(UsageError, match="2 of the student's features and 3 of the teacher's"):
        small(rich_store, tmp_path, objective=[uneven], **CNN)


@contextmanager
def rates() -> Iterator[dict[tuple[float, float], list[float]]]:
    """The rate of every step of every Adam, by its betas."""
    found: dict[tuple[float, float], list[float]] = {}

    def before(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        group = optimizer.param_groups[0]
        found.setdefault(group["betas"], []).append(group["lr"])

    handle = register_optimizer_step_pre_hook(before)
    try:
        yield found
    finally:
        handle.remove()


def test_an_opponent_has_an_optimiser_of_its_own(plain_store: Path, tmp_path: Path) -> None:
    change = {"model": "student_runs:dropout_net", "args": {}, "objective": [*KD, AGAINST, BANKS]}
    with rates() as found:
        small(plain_store, tmp_path, steps=8, schedule="cosine", lr=0.001, **change)
    students, opponents = found[0.9, 0.999], found[0.5, 0.999]
    assert students[0] == 0.001
    assert students[-1] < 0.0001
    assert opponents == pytest.approx([10 * rate for rate in students])
    terms = read_metrics(tmp_path)[-1]["terms"]
    assert list(terms) == ["kd", "ce", "adversarial", "adversarial.opponent", "crd"]
    whole = 0.9 * terms["kd"] + 0.1 * terms["ce"] + 0.3 * terms["adversarial"] + 0.02 * terms["crd"]
    assert read_metrics(tmp_path)[-1]["loss"] == pytest.approx(whole, rel=1e-5)
    last = tmp_path / "resume/step-00000008"
    kept = {path.stem: set(load_file(path)) for path in last.glob("*.safetensors")}
    assert {"optimizer", "opponent-adversarial", "adapters", "model"} <= set(kept)
    assert "crd.bank" in kept["adapters"]
    assert any(name.startswith("adversarial.discriminator") for name in kept["adapters"])
    assert len(kept["opponent-adversarial"]) % 3 == 0  # step and two moments of every parameter
    assert exported(tmp_path) == set(dropout_net((61,), 10).state_dict())


def test_a_contest_in_micro_batches_is_that_of_the_whole_batch(plain_store: Path, tmp_path: Path) -> None:
    smooth = ObjectiveConfig.model_validate({"name": "adversarial", "hidden": 16, "spectral_norm": False})
    for parts in (1, 4):
        small(plain_store, tmp_path / str(parts), steps=6, batch_size=50, accumulate=parts, objective=[*KD, smooth])
    one, four = (read_metrics(tmp_path / name)[-1] for name in ("1", "4"))
    assert four["loss"] == pytest.approx(one["loss"], rel=1e-4)
    assert four["terms"] == pytest.approx(one["terms"], rel=1e-4)
    whole, cut = (load_file(tmp_path / name / "resume/step-00000006/adapters.safetensors") for name in ("1", "4"))
    for name, values in whole.items():
        torch.testing.assert_close(cut[name], values, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"accumulate": 2}, r"train.accumulate = 2 would cut the batch; set it to 1"),
        ({"batch_size": 5}, r"it needs 3 rows together.* set that to 6 or more"),
    ],
)
def test_rows_that_are_compared_stay_together(
    change: dict[str, int], said: str, plain_store: Path, tmp_path: Path
) -> None:
    relation = ObjectiveConfig(name="rkd_distance", field=("features.hidden",), tap=("layers.0",))
    with pytest.raises(UsageError, match=said):
        small(plain_store, tmp_path, objective=[*KD, relation], **change)
    assert not (tmp_path / "resume").exists()


def test_a_metric_of_ones_own_is_code_that_has_to_be_allowed(
    digits_store: Path, digits_eval: Path, tmp_path: Path
) -> None:
    own = "student_runs:confidence"
    result = small(digits_store, tmp_path / "run", epochs=1, metrics=("accuracy", own), eval_store=digits_eval)
    assert result.eval is not None
    assert 0.1 < result.eval["confidence"] < 1
    words = ("eval", tmp_path / "run", "--store", digits_eval)
    one_error_line(forked(tmp_path / "said", *words), 77, own, "--allow-code")
    allowed = forked(tmp_path / "said", *words, "--allow-code", "--json")
    assert allowed.code == 0, allowed.err
    found = json.loads(allowed.out)
    assert {name: found[name] for name in ("accuracy", "confidence")} == pytest.approx(
        {name: result.eval[name] for name in ("accuracy", "confidence")}
    )
