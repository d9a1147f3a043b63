"""The fit on real digits: what it leaves behind, what it refuses, and that its steps are the right ones."""

from __future__ import annotations

import fcntl
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from student_runs import CE, HINT, KD, MLP_HINT, begin, small
from student_stores import DIGITS_MEAN, DIGITS_STD, digits, soft_labels, write_store

from kdcache.config import EarlyStopping, ObjectiveConfig, TrainConfig
from kdcache.errors import CheckpointError, DataError, UsageError
from kdcache.models import InputSpec, build_model, load_model
from kdcache.store import open_store
from kdcache.student import Progress, evaluate_run, fit, planned_steps, predict, read_metrics, rows_used
from kdcache.student.data import open_data
from kdcache.student.rows import choose_rows


class Events(Progress):
    """Counts what it is told."""

    def __init__(self) -> None:
        self.steps: list[int] = []
        self.rows: list[tuple[int, int, str]] = []
        self.ended = False

    def stepped(self, step: int) -> None:
        self.steps.append(step)

    def measured(self, step: int, epoch: int, split: str, metrics: Any) -> None:
        self.rows.append((step, epoch, split))

    def finished(self, step: int, seconds: float) -> None:
        self.ended = True


def test_a_fit_leaves_its_weights_metrics_and_result(digits_store: Path, digits_eval: Path, tmp_path: Path) -> None:
    events = Events()
    result = small(digits_store, tmp_path, epochs=4, eval_store=digits_eval, progress=events)
    with open_store(digits_store) as store, open_store(digits_eval) as other:
        assert result.stores == [store.digest]
        assert result.eval is not None
        assert result.eval["store"] == other.digest
    assert (result.steps, result.epochs, result.best_step) == (88, 4.0, 88)
    assert (result.stopped_early, result.val) == (False, None)
    assert result.parameters == 64 * 32 + 32 + 32 * 10 + 10
    assert result.eval["accuracy"] > 0.7
    assert json.loads((tmp_path / "result.json").read_bytes()) == vars(result)
    rows = read_metrics(tmp_path)
    assert (
        [(row["step"], row["epoch"], row["split"]) for row in rows]
        == events.rows
        == [(22, 1, "train"), (44, 2, "train"), (66, 3, "train"), (88, 4, "train"), (88, 4, "eval")]
    )
    assert rows[0]["loss"] > rows[3]["loss"]
    assert set(rows[0]["terms"]) == {"kd", "ce"}
    assert rows[0]["loss"] == pytest.approx(0.9 * rows[0]["terms"]["kd"] + 0.1 * rows[0]["terms"]["ce"], rel=1e-5)
    assert list((tmp_path / "tensorboard").glob("events*"))
    assert events.steps == list(range(1, 89))
    assert events.ended
    model, info = load_model(tmp_path / "model.safetensors")
    assert (info.model, info.outputs, info.extra["stores"]) == ("zoo:mlp", 10, result.stores)
    assert info.input_spec == InputSpec((DIGITS_MEAN,), (DIGITS_STD,))
    facts = evaluate_run(tmp_path, digits_eval)
    assert (facts["accuracy"], facts["loss"], facts["labelled"]) == (result.eval["accuracy"], result.eval["loss"], 397)
    with open_store(digits_eval) as other:
        found = predict(model, (other,), info, torch.device("cpu"))
        assert (found == other.read_column("label")).mean() == result.eval["accuracy"]


def test_a_finished_fit_is_returned_and_evaluated_on_what_it_was_not_yet(
    digits_store: Path, digits_eval: Path, tmp_path: Path
) -> None:
    first = small(digits_store, tmp_path, epochs=1)
    assert first.eval is None
    events = Events()
    again = small(digits_store, tmp_path, epochs=1, progress=events)
    assert again == first
    assert events.steps == []
    evaluated = small(digits_store, tmp_path, epochs=1, eval_store=digits_eval)
    assert evaluated.eval == {key: evaluate_run(tmp_path, digits_eval)[key] for key in ("accuracy", "loss", "store")}
    assert small(digits_store, tmp_path, epochs=1) == evaluated
    with pytest.raises(CheckpointError, match=r"result.json: belongs to another fit: its evaluate_every is 22"):
        small(digits_store, tmp_path, epochs=1, evaluate_every=5)


def test_one_seed_gives_one_result_and_another_gives_another(digits_store: Path, tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        small(digits_store, tmp_path / name, epochs=1, seed=seed)
    a, b, c = ((tmp_path / name / "model.safetensors").read_bytes() for name in "abc")
    assert a == b
    assert a != c


def test_a_baseline_takes_as_many_steps_as_its_student(digits_store: Path, tmp_path: Path) -> None:
    train = TrainConfig(epochs=3, batch_size=64)
    steps = planned_steps(train, rows_used([digits_store], KD, train))
    student = small(digits_store, tmp_path / "student")
    baseline = small(digits_store, tmp_path / "baseline", objective=CE, steps=steps)
    assert (student.steps, baseline.steps, steps) == (66, 66, 66)
    assert (student.epochs, baseline.epochs) == (3.0, 13.2)
    assert [row["step"] for row in read_metrics(tmp_path / "baseline")] == [22, 44, 66]


def test_a_fit_on_labels_sees_labelled_rows_only_unless_told_otherwise(tmp_path: Path) -> None:
    inputs, labels = digits()
    store = write_store(tmp_path / "s", inputs[:200], np.where(np.arange(200) < 120, labels[:200], -1))
    assert small(store, tmp_path / "a", objective=CE, batch_size=40, epochs=2).epochs == 2.0
    assert small(store, tmp_path / "a", objective=CE, batch_size=40, epochs=2).steps == 6
    assert small(store, tmp_path / "b", objective=CE, batch_size=40, epochs=2, labels_only_rows=False).steps == 10


def test_early_stopping_ends_the_fit_and_restores_the_best_weights(digits_store: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {
        "objective": CE,
        "epochs": 60,
        "batch_size": 32,
        "lr": 0.03,
        "holdout": 0.3,
        "args": {"hidden": [64]},
    }
    result = small(digits_store, tmp_path / "run", early_stopping=EarlyStopping(patience=3), **options)
    vals = [row for row in read_metrics(tmp_path / "run") if row["split"] == "val"]
    losses = [row["loss"] for row in vals]
    best = int(np.argmin(losses))
    assert result.stopped_early
    assert result.steps < 60 * 7
    assert len(losses) == best + 1 + 3
    assert result.best_step == vals[best]["step"]
    assert result.val == {"loss": losses[best], "accuracy": vals[best]["accuracy"]}
    # The exported weights give the best held-out loss, computed here from the rows themselves.
    model, info = load_model(tmp_path / "run" / "model.safetensors")
    train = TrainConfig(early_stopping=EarlyStopping(), holdout=0.3)
    with open_data([digits_store]) as data:
        held = choose_rows(data, train, True).held
        x = torch.from_numpy(data.readers[0].read_column("input")[held])
        y = torch.from_numpy(data.readers[0].read_column("label")[held])
    model.eval()
    with torch.no_grad():
        logits = model(info.input_spec.apply(x))
    assert torch.nn.functional.cross_entropy(logits, y).item() == pytest.approx(losses[best], rel=1e-5)
    unrestored = EarlyStopping(patience=3, restore_best=False)
    last = small(digits_store, tmp_path / "last", early_stopping=unrestored, **options)
    assert last.best_step == last.steps == result.steps
    assert last.val is not None
    assert last.val["loss"] == losses[-1]
    assert (tmp_path / "last/model.safetensors").read_bytes() != (tmp_path / "run/model.safetensors").read_bytes()


def test_accumulated_micro_batches_give_the_step_of_the_whole_batch(plain_store: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {
        "batch_size": 50,
        "optimizer": "sgd",
        "lr": 0.05,
        "objective": MLP_HINT,
        "clip_norm": 1.0,
        "args": {"hidden": [24]},
        "epochs": 2,
    }

    whole = small(plain_store, tmp_path / "whole", **options)
    parts = small(plain_store, tmp_path / "parts", accumulate=4, **options)
    assert whole.steps == parts.steps == 20
    a, b = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "parts"))
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=1e-4, atol=1e-6)
    one, other = (read_metrics(tmp_path / name)[-1] for name in ("whole", "parts"))
    assert one["loss"] == pytest.approx(other["loss"], rel=1e-4)
    assert one["terms"] == pytest.approx(other["terms"], rel=1e-4)


def test_adapters_are_trained_and_kept_but_not_exported(plain_store: Path, tmp_path: Path) -> None:
    small(plain_store, tmp_path, model="student_runs:dropout_net", args={}, objective=HINT, batch_size=50)
    (folder,) = (tmp_path / "resume").glob("step-00000030")
    adapters = load_file(folder / "adapters.safetensors")
    assert {tuple(value.shape) for value in adapters.values()} == {(20, 24), (20,)}
    assert set(load_file(tmp_path / "model.safetensors")) == set(load_file(folder / "model.safetensors"))


def test_the_first_step_is_that_of_a_hand_written_loop(digits_store: Path, tmp_path: Path) -> None:
    small(digits_store, tmp_path, objective=CE, steps=1, optimizer="sgd", lr=0.1, momentum=0.0, batch_size=300)
    with open_data([digits_store]) as data:
        known = data.labelled
        x = torch.from_numpy(data.readers[0].read_column("input")[known]).float().sub(DIGITS_MEAN).div(DIGITS_STD)
        y = torch.from_numpy(data.readers[0].read_column("label")[known])
        torch.manual_seed(0)
        model = build_model("zoo:mlp", {"hidden": [32]}, input=data.input, outputs=10)
    torch.nn.functional.cross_entropy(model(x), y).backward()
    fitted = load_file(tmp_path / "model.safetensors")
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(fitted[name], parameter.detach() - 0.1 * parameter.grad, rtol=1e-4, atol=1e-6)


def test_bf16_is_close_to_fp32(digits_store: Path, tmp_path: Path) -> None:
    small(digits_store, tmp_path / "fp32", epochs=2)
    with pytest.raises(UsageError, match="begun with another precision"):
        small(digits_store, tmp_path / "bf16", epochs=2, precision="bf16")
    process = begin("in_bf16", digits_store, tmp_path / "bf16", 30.0)
    process.join()
    assert process.exitcode == 0
    one, other = (read_metrics(tmp_path / name)[-1]["loss"] for name in ("fp32", "bf16"))
    assert one != other
    assert one == pytest.approx(other, rel=0.02)


@pytest.mark.parametrize("checkpoint_seconds", [0.0, 30.0])
def test_a_loss_that_is_not_finite_ends_the_fit_naming_its_step(
    digits_store: Path, tmp_path: Path, checkpoint_seconds: float
) -> None:
    said = r"the loss became (nan|inf) at step \d+; lower train.lr \(now 1e\+10\), set train.clip_norm = 1.0"
    with pytest.raises(DataError, match=said):
        small(digits_store, tmp_path / "run", optimizer="sgd", lr=1e10, checkpoint_seconds=checkpoint_seconds)
    assert not (tmp_path / "run" / "result.json").exists()
    assert not any(math.isnan(row["loss"]) for row in read_metrics(tmp_path / "run"))


def test_a_student_of_another_width_is_refused_with_both_numbers(digits_store: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"student_runs:eleven_outputs gives \[2, 11\].* \[2, 10\]"):
        small(digits_store, tmp_path, model="student_runs:eleven_outputs", args={})


def test_labels_are_asked_for_where_there_are_none(tmp_path: Path) -> None:
    inputs, _ = digits()
    store = write_store(tmp_path / "s", inputs[:100], None)
    with pytest.raises(UsageError, match="has no labels"):
        small(store, tmp_path / "run", objective=CE)
    store = write_store(tmp_path / "t", inputs[:100], np.full(100, -1))
    with pytest.raises(UsageError, match="none of its 100 rows has a label"):
        small(store, tmp_path / "run", objective=CE)


def test_a_run_is_evaluated_only_on_what_it_fits(digits_store: Path, plain_store: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"holds no model.safetensors"):
        evaluate_run(tmp_path, digits_store)
    small(digits_store, tmp_path / "run", steps=1)
    with pytest.raises(UsageError, match=r"was fitted on input uint8\[8, 8\], and that of .* is float32\[61\]"):
        evaluate_run(tmp_path / "run", plain_store)
    inputs, labels = digits()
    two = write_store(tmp_path / "two", inputs[:64], labels[:64] % 2, classes=2)
    with pytest.raises(UsageError, match=r"has 10 outputs, and .* has 2 classes"):
        evaluate_run(tmp_path / "run", two)
    none = write_store(tmp_path / "none", inputs[:64], np.full(64, -1))
    with pytest.raises(UsageError, match="no row has a label"):
        evaluate_run(tmp_path / "run", none)


def test_two_fits_at_once_in_one_folder_are_refused(digits_store: Path, tmp_path: Path) -> None:
    with (tmp_path / ".lock").open("a") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(CheckpointError, match="another process is fitting into this folder"):
            small(digits_store, tmp_path)
    assert small(digits_store, tmp_path, steps=1).steps == 1


def test_a_second_store_adds_its_fields(tmp_path: Path) -> None:
    inputs, labels = digits()
    one = write_store(tmp_path / "one", inputs[:300], labels[:300])
    rng = np.random.default_rng(0)
    two = write_store(tmp_path / "two", inputs[:300], None, logits=rng.normal(size=(300, 10)).astype(np.float32))
    with open_data([one, two]) as data:
        assert sorted(data.fields) == ["id", "input", "label", "logits"]
        assert data.digests == [open_store(one).digest, open_store(two).digest]
    result = fit(
        "zoo:mlp",
        {"hidden": [8]},
        [one, two],
        tmp_path / "run",
        objective=KD,
        train=TrainConfig(epochs=1, batch_size=50),
        seed=0,
        identity={},
    )
    assert len(result.stores) == 2


def test_two_teachers_of_one_field_name_teach_together(tmp_path: Path) -> None:
    inputs, labels = digits()
    truth = soft_labels(inputs, labels)
    first = write_store(tmp_path / "first", inputs, labels, logits=truth)
    second = write_store(tmp_path / "second", inputs, labels, logits=-truth, codec="topk", k=4)
    opposed = [ObjectiveConfig(name="kd", weight=0.5), ObjectiveConfig(name="kd", field="logits@2", weight=0.5)]
    run = tmp_path / "run"
    train = TrainConfig(epochs=1, batch_size=64)
    result = fit("zoo:mlp", {"hidden": [32]}, [first, second], run, objective=opposed, train=train, seed=0, identity={})
    assert len(result.stores) == 2
    terms = [row["terms"] for row in read_metrics(run) if row["split"] == "train"]
    assert set(terms[-1]) == {"kd", "kd.1"}
    assert sum(terms[-1].values()) > 1.0, "a student cannot please two teachers who contradict each other"


def test_what_the_network_raises_in_training_is_no_bug_of_ours(plain_store: Path, tmp_path: Path) -> None:
    network = {"model": "student_runs:dropout_net", "args": {}}
    with pytest.raises(UsageError, match=r"Sequential raised ValueError in training on 1 row.*raise train.batch_size"):
        small(plain_store, tmp_path, batch_size=1, **network)


def test_a_network_without_parameters_is_refused(digits_store: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no parameter that can be trained"):
        small(digits_store, tmp_path, model="student_runs:no_parameters", args={})


def test_an_eval_store_of_another_kind_is_refused_before_the_fit(digits_store: Path, tmp_path: Path) -> None:
    store = write_store(tmp_path / "other", np.zeros((8, 5), np.float32), np.arange(8, dtype=np.int64))
    with pytest.raises(UsageError, match="evaluate on a store of the same kind of inputs"):
        small(digits_store, tmp_path / "run", eval_store=store)
    assert not (tmp_path / "run").exists()


def test_a_store_is_no_place_for_a_fit(digits_store: Path) -> None:
    before = sorted(digits_store.iterdir())
    with pytest.raises(CheckpointError, match="holds a store, not a fit"):
        small(digits_store, digits_store)
    assert sorted(digits_store.iterdir()) == before
