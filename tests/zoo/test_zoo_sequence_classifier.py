"""`hf:` classifiers of token rows: padding, taps, files, and beginning with a language model's weights."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from kdcache.arrays import Array
from kdcache.errors import MissingExtra, UsageError
from kdcache.models import (
    WeightsInfo,
    build_model,
    is_language_model,
    load_model,
    load_weights,
    partial_weights,
    save_weights,
)
from kdcache.taps import tap_outputs
from kdcache.zoo.sequence_classifier import HuggingFaceClassifier

transformers = pytest.importorskip("transformers")

L, V, C = 10, 61, 3
ARRAY = Array("int32", (L,))
SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
MODELS: dict[str, dict[str, Any]] = {
    "bert": SIZES,
    "roberta": SIZES,
    "distilbert": {"dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 24},
}

BART = {"vocab_size": V, "d_model": 16, "encoder_layers": 1, "decoder_layers": 1}


def built(name: str, **args: Any) -> HuggingFaceClassifier:
    torch.manual_seed(0)
    given = {**MODELS[name], "vocab_size": V, **args}
    model = build_model(f"hf:{name}", given, input=ARRAY, outputs=C, positions=None)
    assert isinstance(model, HuggingFaceClassifier)
    return model


def rows() -> torch.Tensor:
    return torch.randint(2, V, (2, L), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", sorted(MODELS))
def test_a_short_row_is_as_it_is_without_its_padding(name: str) -> None:
    model = built(name, pad=1)
    assert model.training
    assert not is_language_model(model)
    model.eval()
    tokens = rows()
    tokens[0, 6:] = 1
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3)
        logits = model(tokens.float())
        torch.testing.assert_close(logits[:1], model(tokens[:1, :6]), atol=1e-5, rtol=1e-4)
        assert torch.isfinite(model(torch.ones(1, L))).all(), "a row of padding alone"
        unmasked = HuggingFaceClassifier(model.network, None)
        assert not torch.allclose(unmasked(tokens)[0], logits[0], atol=1e-4)
        assert torch.allclose(unmasked(tokens)[1], logits[1], atol=1e-6)


def test_taps_of_bert_are_hidden_states() -> None:
    names = {"a": "network.bert.encoder.layer.1", "b": "network.bert.embeddings", "c": "network.bert.pooler"}
    model = built("bert").eval()
    with torch.no_grad(), tap_outputs(model, names) as taps:
        logits = model(rows())
        assert [tuple(taps[key].shape) for key in "abc"] == [(2, L, 16), (2, L, 16), (2, 16)]
        torch.testing.assert_close(logits, model.network.classifier(taps["c"]))


@pytest.mark.parametrize("name", sorted(MODELS))
@pytest.mark.parametrize("said", [True, False])
def test_weights_come_back(name: str, said: bool, tmp_path: Path) -> None:
    task = {"task": "classify"} if said else {}
    model = built(name, **task).eval()
    args = {**MODELS[name], "vocab_size": V, **task}
    save_weights(tmp_path / "w", model, WeightsInfo(f"hf:{name}", args, ARRAY, C))
    again, _ = load_model(tmp_path / "w")
    assert isinstance(again, HuggingFaceClassifier)
    with torch.no_grad():
        assert torch.equal(again.eval()(rows()), model(rows()))


def test_a_classifier_begins_with_the_body_of_a_masked_language_model(tmp_path: Path) -> None:
    language = build_model("hf:bert", {**SIZES, "num_hidden_layers": 4}, input=ARRAY, outputs=V, positions=L)
    assert is_language_model(language)
    save_weights(tmp_path / "w", language, WeightsInfo("hf:bert", {**SIZES, "num_hidden_layers": 4}, ARRAY, V))
    tensors, _ = load_weights(tmp_path / "w")
    model = built("bert")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    taken = partial_weights(model, tensors, tmp_path / "w")
    after = model.state_dict()
    shared = [name for name in after if name in tensors]
    assert taken == len(shared) == 5 + 2 * 16, "embeddings and two layers"
    assert all(torch.equal(after[name], tensors[name]) for name in shared)
    rest = set(after) - set(shared)
    assert {name.split(".")[1] for name in rest} == {"bert", "classifier"}
    assert all(torch.equal(after[name], before[name]) for name in rest)
    other = build_model("zoo:mlp", {}, input=ARRAY, outputs=C)
    with pytest.raises(UsageError, match=r"none of its \d+ weights has the name and shape of one of this MLP's 4"):
        partial_weights(other, tensors, tmp_path / "w")


def test_a_local_folder(tmp_path: Path) -> None:
    own = transformers.BertForSequenceClassification(transformers.BertConfig(vocab_size=V, num_labels=C, **SIZES))
    own.eval().save_pretrained(tmp_path / "model")
    args = {"task": "classify"}
    model = build_model(f"hf:{tmp_path}/model", args, input=ARRAY, outputs=C)
    with torch.no_grad():
        torch.testing.assert_close(model.eval()(rows()), own(input_ids=rows()).logits)


@pytest.mark.parametrize(
    ("name", "args", "said"),
    [
        ("bert", {}, "args.vocab_size.*is needed"),
        ("bert", {"vocab_size": "many"}, "is needed.*not 'many'"),
        ("bert", {"vocab_size": V, "hiden_size": 4}, "did you mean 'hidden_size'"),
        ("bert", {"vocab_size": V, "pad": 1.0}, r"pad = 1\.0 must be a token's number"),
        ("bert", {"vocab_size": V, "pad": V}, "pad = 61 is none of its 61 tokens"),
        ("bertt", {"vocab_size": V}, "did you mean 'bert'"),
        ("bart", BART, "hf:bart: an encoder with a decoder"),
        ("bert", {**SIZES, "vocab_size": V, "task": "masked"}, "vocab_size comes from the data"),
        ("bert", {**SIZES, "task": "masked"}, "judges every token.*one label"),
    ],
)
def test_what_cannot_be_built(name: str, args: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        build_model(f"hf:{name}", args, input=ARRAY, outputs=C, positions=None)


def test_without_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(MissingExtra, match=r"the model hf:bert needs transformers"):
        build_model("hf:bert", {"vocab_size": V}, input=ARRAY, outputs=C, positions=None)
