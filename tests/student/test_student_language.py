"""Language models fitted from stores: steps and figures against plain loops, resuming, and what is refused."""

from __future__ import annotations

import math
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from language_stores import LENGTH, TINY, VOCABULARY, bigram, prompts_hidden, tokens, write_tokens
from safetensors.torch import load_file
from student_runs import CE, KD
from torch import Tensor, nn

from kdcache.config import EarlyStopping, ObjectiveConfig, TrainConfig
from kdcache.errors import Interrupted, UsageError
from kdcache.models import build_model, load_model
from kdcache.store import open_store
from kdcache.student import FitResult, Progress, evaluate_run, fit, read_metrics
from kdcache.student import data as data_module
from kdcache.student.data import open_data

ROWS = 96
PURE = [ObjectiveConfig(name="kd")]
MIXED = [ObjectiveConfig(name="kd", weight=0.9), ObjectiveConfig(name="ce", weight=0.1)]


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("tokens")
    rows, extra = tokens(0, ROWS)
    rows, logits = prompts_hidden(rows), bigram(rows)
    other, _ = tokens(ROWS, ROWS + 40)
    return {
        "dense": write_tokens(folder / "dense", rows, extra, logits=logits, dtype="float32"),
        "topk": write_tokens(folder / "topk", rows, extra, logits=logits, codec="topk", k=5),
        "sampled": write_tokens(folder / "sampled", rows, extra, logits=logits, codec="sampled", draws=20),
        "eval": write_tokens(folder / "eval", other, extra, logits=bigram(other), codec="topk", k=1),
        "eval-sampled": write_tokens(folder / "eval-s", other, extra, logits=bigram(other), codec="sampled", draws=9),
    }


def small(store: Path, out: Path, **change: Any) -> FitResult:
    """A few steps of a tiny transformer."""
    options = {key: change.pop(key) for key in list(change) if key == "steps" or key not in TrainConfig.model_fields}
    train = TrainConfig.model_validate({"epochs": 2, "batch_size": 16, "lr": 3e-3} | change)
    options = {"objective": MIXED, "seed": 0, "identity": {}, "model": "zoo:gpt", "args": TINY} | options
    return fit(options.pop("model"), options.pop("args"), [store], out, train=train, **options)


def logits_of(model: nn.Module, store: Path) -> tuple[Tensor, Tensor]:
    """Logits [N, V] of every scored position of a store, row by row, and their labels: without any code of the room."""
    with open_store(store) as reader:
        input, segment, label = (torch.from_numpy(reader.read_column(n).astype(np.int64))
                                 for n in ("input", "segment", "label"))  # fmt: skip
    model.eval()
    with torch.no_grad():
        whole = torch.cat([model(t[None], s[None])[:, :-1] for t, s in zip(input, segment, strict=True)])
    return whole[label >= 0], label[label >= 0]


def test_a_fit_leaves_perplexity_accuracy_and_agreement(stores: dict[str, Path], tmp_path: Path) -> None:
    result = small(stores["dense"], tmp_path, epochs=8, eval_store=stores["eval"])
    model, info = load_model(tmp_path / "model.safetensors")
    logits, label = logits_of(model, stores["eval"])
    assert result.eval is not None
    nats = F.cross_entropy(logits.double(), label).item()
    assert result.eval["loss"] == pytest.approx(nats, rel=1e-5)
    assert result.eval["perplexity"] == pytest.approx(math.exp(nats), rel=1e-4)
    assert result.eval["perplexity"] < VOCABULARY / 3, "it has learnt something"
    assert result.eval["accuracy"] == pytest.approx((logits.argmax(1) == label).double().mean().item())
    rows, _ = tokens(ROWS, ROWS + 40)
    with open_store(stores["eval"]) as reader:
        order, scored = reader.read_column("id"), reader.read_column("label") >= 0
    best = torch.from_numpy(bigram(rows).argmax(-1)[order][scored])
    assert result.eval["agreement"] == pytest.approx((logits.argmax(1) == best).double().mean().item())
    row = read_metrics(tmp_path)[-1]
    assert {key: row[key] for key in ("loss", "accuracy", "perplexity", "agreement")} == {
        key: value for key, value in result.eval.items() if key != "store"
    }
    assert info.extra["tokenizer"]["size"] == VOCABULARY
    facts = evaluate_run(tmp_path, stores["eval"])
    assert (facts["perplexity"], facts["labelled"]) == (result.eval["perplexity"], len(label))
    assert "agreement" not in evaluate_run(tmp_path, stores["eval-sampled"]), "draws do not tell the likeliest"


@pytest.mark.parametrize("objective", [PURE, CE])
def test_the_first_step_is_that_of_a_plain_loop(
    objective: list[ObjectiveConfig], stores: dict[str, Path], tmp_path: Path
) -> None:
    sgd = {"optimizer": "sgd", "lr": 0.5, "momentum": 0.0}
    small(stores["dense"], tmp_path, objective=objective, steps=1, batch_size=ROWS, labels_only_rows=False, **sgd)
    with open_data([stores["dense"]]) as data:
        torch.manual_seed(0)
        model = build_model("zoo:gpt", TINY, input=data.input, outputs=VOCABULARY)
        read = data.readers[0].read_column
        input, segment, label = (torch.from_numpy(read(n).astype(np.int64)) for n in ("input", "segment", "label"))
        teacher = torch.from_numpy(read("logits").copy())
    scored = label >= 0
    assert 0.2 < scored.float().mean() < 0.8
    q = model(input, segment)[:, :-1][scored].log_softmax(1)
    p = teacher[scored].log_softmax(1)
    loss = F.nll_loss(q, label[scored]) if objective is CE else (p.exp() * (p - q)).sum(1).mean()
    loss.backward()
    fitted = load_file(tmp_path / "model.safetensors")
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(fitted[name], parameter.detach() - 0.5 * parameter.grad, rtol=1e-4, atol=2e-6)
    assert read_metrics(tmp_path)[0]["loss"] == pytest.approx(loss.item(), rel=1e-5)


@pytest.mark.parametrize("store", ["dense", "topk", "sampled"])
def test_micro_batches_weigh_their_scored_positions(store: str, stores: dict[str, Path], tmp_path: Path) -> None:
    options: dict[str, Any] = {"optimizer": "sgd", "lr": 0.3, "batch_size": 32}
    small(stores[store], tmp_path / "whole", **options)
    small(stores[store], tmp_path / "parts", accumulate=5, **options)
    a, b = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "parts"))
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=1e-3, atol=2e-6)
    one, other = (read_metrics(tmp_path / name)[-1] for name in ("whole", "parts"))
    assert one["loss"] == pytest.approx(other["loss"], rel=1e-5)
    assert one["terms"] == pytest.approx(other["terms"], rel=1e-5)


class StopAt(Progress):
    """Asks this process to stop after a step, as Ctrl-C does."""

    def __init__(self, step: int) -> None:
        self.step = step

    def stepped(self, step: int) -> None:
        if step == self.step:
            os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.parametrize("store", ["topk", "sampled"])
def test_stopped_at_any_step_it_ends_with_the_same_bytes(store: str, stores: dict[str, Path], tmp_path: Path) -> None:
    options: dict[str, Any] = {
        "args": {**TINY, "dropout": 0.2},
        "batch_size": 17,
        "epochs": 3,
        "accumulate": 2,
        "optimizer": "adamw",
        "schedule": "one_cycle",
        "early_stopping": EarlyStopping(patience=9),
    }
    whole = small(stores[store], tmp_path / "whole", **options)
    for step in (1, 4, 5, 9):
        with pytest.raises(Interrupted):
            small(stores[store], tmp_path / "run", progress=StopAt(step), **options)
    result = small(stores[store], tmp_path / "run", **options)
    assert result.steps == whole.steps > 10
    assert result.val == whole.val
    assert result.val is not None
    assert set(result.val) == {"loss", "accuracy", "perplexity"} | ({"agreement"} if store == "topk" else set())
    assert (tmp_path / "run/model.safetensors").read_bytes() == (tmp_path / "whole/model.safetensors").read_bytes()
    assert read_metrics(tmp_path / "run") == read_metrics(tmp_path / "whole")


def test_rows_without_a_scored_position_are_left_out_of_fits_on_labels(stores: dict[str, Path], tmp_path: Path) -> None:
    with open_store(stores["dense"]) as reader:
        some = (reader.read_column("label") >= 0).any(axis=1).sum()
    assert 0 < some < ROWS
    assert small(stores["dense"], tmp_path / "ce", objective=CE, epochs=1).identity["rows"] == some
    assert small(stores["dense"], tmp_path / "kd", objective=PURE, epochs=1).identity["rows"] == ROWS


def test_labels_are_counted_in_runs(stores: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    with open_data([stores["dense"]]) as data:
        whole = data.scored
    monkeypatch.setattr(data_module, "_READ_BYTES", 4 * LENGTH * 7)
    with open_data([stores["dense"]]) as data:
        assert (data.scored == whole).all()
        label = data.readers[0].read_column("label")
    assert (whole == (label >= 0).sum(axis=1)).all()
    assert (data.positions, data.input.shape) == (LENGTH - 1, (LENGTH,))


class Other(nn.Module):
    """A language model with a vocabulary of its own."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.embedding, self.head, self.causal = nn.Embedding(size, 8), nn.Linear(8, size), True

    def hidden(self, tokens: Tensor, segment: Tensor | None = None) -> Tensor:
        return self.embedding(tokens)

    def forward(self, tokens: Tensor, segment: Tensor | None = None) -> Tensor:
        return self.head(self.hidden(tokens, segment))


def other_vocabulary(size: int = 300) -> nn.Module:
    """A factory that does not ask how many tokens there are."""
    return Other(size)


def test_another_vocabulary_is_refused_with_both_sizes(stores: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"300.*257"):
        small(stores["dense"], tmp_path / "wide", model="test_student_language:other_vocabulary", args={})
    assert not list((tmp_path / "wide").glob("*.safetensors"))
    rows, _ = tokens(0, 24)
    foreign = {"tokenizer": {"vocabulary": "f" * 64, "size": VOCABULARY, "special_tokens": {}, "chat_template": None}}
    other = write_tokens(tmp_path / "other", rows, foreign)
    with pytest.raises(UsageError, match=r"has the vocabulary [0-9a-f]{16} of 257 tokens, .* has f{16} of 257 tokens"):
        small(stores["dense"], tmp_path / "run", eval_store=other)
    assert not (tmp_path / "run").exists()
    small(stores["dense"], tmp_path / "run", epochs=1)
    with pytest.raises(UsageError, match="an id does not mean the same in both"):
        evaluate_run(tmp_path / "run", other)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"model": "zoo:mlp", "args": {"hidden": [8]}}, "is no language model"),
        ({"args": {**TINY, "causal": False}}, "is masked, and a row of 16 tokens has 15 targets"),
        ({"augment": ("flip",)}, "changes images, and these rows are sequences of tokens"),
        ({"objective": KD, "store": "sampled"}, r"draws from the teacher at T = 1, which serve that one alone"),
    ],
)
def test_what_cannot_be_fitted_on_tokens_is_refused_before(
    change: dict[str, Any], said: str, stores: dict[str, Path], tmp_path: Path
) -> None:
    store = stores[change.pop("store", "dense")]
    with pytest.raises(UsageError, match=said):
        small(store, tmp_path / "run", **change)
    assert not list((tmp_path / "run").glob("*.safetensors"))


def test_a_masked_model_is_fitted_on_masked_rows(tmp_path: Path) -> None:
    rows, extra = tokens(0, 64, masked=0.3)
    vocabulary = extra["tokenizer"]["size"]
    logits = np.log1p(np.arange(vocabulary, dtype=np.float32)) * np.ones((64, LENGTH, 1), np.float32)
    extra = {**extra, "classes": vocabulary}
    store = write_tokens(tmp_path / "masked", rows, extra, logits=logits, codec="topk", k=3)
    result = small(store, tmp_path / "run", args={**TINY, "causal": False}, epochs=1, eval_store=store)
    assert result.eval is not None
    assert 1.0 < result.eval["perplexity"] < 10 * vocabulary
    with pytest.raises(UsageError, match="is causal, and a row of 16 tokens has 16 targets"):
        small(store, tmp_path / "causal")
