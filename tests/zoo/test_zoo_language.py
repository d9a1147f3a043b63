"""`hf:` language models: the library's own logits, packed documents, local folders, what is refused."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from kdcache.arrays import Array
from kdcache.errors import MissingExtra, UsageError
from kdcache.models import WeightsInfo, is_language_model, load_model, save_weights, vocabulary_of
from kdcache.zoo.language import HuggingFaceLM, from_hf_language
from kdcache.zoo.reference import build_model

transformers = pytest.importorskip("transformers")

L, V = 14, 61
ARRAY = Array("int32", (L,))
SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
MODELS: dict[str, dict[str, Any]] = {
    "gpt2": {"n_embd": 16, "n_layer": 2, "n_head": 2},
    "llama": {**SMALL, "num_key_value_heads": 1},
    "bert": SMALL,
    "roberta": SMALL,
}


def built(name: str, **args: Any) -> HuggingFaceLM:
    torch.manual_seed(0)
    model = build_model(f"hf:{name}", {**MODELS[name], **args}, input=ARRAY, outputs=V)
    assert isinstance(model, HuggingFaceLM)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if "norm" not in key.lower() and "ln_" not in key:
                parameter.mul_(4)
    return model


def rows(seed: int = 0) -> torch.Tensor:
    return torch.randint(3, V, (2, L), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", sorted(MODELS))
def test_a_packed_document_is_as_it_is_alone(name: str) -> None:
    model = built(name)
    assert model.training
    assert is_language_model(model)
    assert model.causal is (name in ("gpt2", "llama"))
    model.eval()
    tokens = rows()
    segment = torch.tensor([[0] * 5 + [1] + [2] * 8, [0] * L])
    with torch.no_grad():
        packed = model.hidden(tokens, segment)
        for row in range(2):
            alone = [model.hidden(tokens[row : row + 1, segment[row] == n])[0] for n in segment[row].unique()]
            torch.testing.assert_close(packed[row], torch.cat(alone), atol=1e-4, rtol=1e-4)
        assert torch.equal(model(tokens, segment), model.head(packed))
        apart = (packed[0] - model.hidden(tokens[:1])[0]).abs().amax(1) > 1e-3
        assert apart[6:].all(), "as one document it is another text"


@pytest.mark.parametrize("name", sorted(MODELS))
def test_logits_are_the_librarys_own(name: str) -> None:
    model = built(name).eval()
    config = model.network.config
    auto = transformers.AutoModelForCausalLM if model.causal else transformers.AutoModelForMaskedLM
    own = auto.from_config(config).eval()
    state = {key.removeprefix("network."): value for key, value in model.state_dict().items()}
    head = next(path for path, module in own.named_modules() if module is own.get_output_embeddings())
    own.load_state_dict({key.replace("head.", f"{head}.", 1) if key.startswith("head.") else key: value
                         for key, value in state.items()}, strict=False)  # fmt: skip
    with torch.no_grad():
        torch.testing.assert_close(model(rows()), own(input_ids=rows()).logits, atol=1e-4, rtol=1e-4)


def test_gradients_reach_every_weight_and_ties_hold(tmp_path: Path) -> None:
    model = built("gpt2", resid_pdrop=0.0)
    model(rows()).square().mean().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert model.head.weight is model.network.transformer.wte.weight
    info = WeightsInfo("hf:gpt2", MODELS["gpt2"], ARRAY, V)
    save_weights(tmp_path / "w.safetensors", model, info)
    loaded, _ = load_model(tmp_path / "w.safetensors")
    assert isinstance(loaded, HuggingFaceLM)
    assert loaded.head.weight is loaded.network.transformer.wte.weight
    with torch.no_grad():
        assert torch.equal(loaded.eval()(rows()), model.eval()(rows()))


def test_a_local_folder(tmp_path: Path) -> None:
    torch.manual_seed(2)
    config = transformers.LlamaConfig(vocab_size=V, **MODELS["llama"], pad_token_id=None)
    own = transformers.LlamaForCausalLM(config).eval()
    own.save_pretrained(tmp_path / "model")
    assert vocabulary_of(f"hf:{tmp_path}/model") == V
    assert vocabulary_of("hf:gpt2") is vocabulary_of("zoo:gpt") is None
    model = build_model(f"hf:{tmp_path}/model", {}, input=ARRAY, outputs=V)
    assert model.training
    with torch.no_grad():
        torch.testing.assert_close(model.eval()(rows()), own(input_ids=rows()).logits, atol=1e-5, rtol=1e-4)
    rough = build_model(f"hf:{tmp_path}/model", {"dtype": "float16"}, input=ARRAY, outputs=V)
    assert {p.dtype for p in rough.parameters()} == {torch.float16}
    with pytest.raises(UsageError, match=rf"its vocabulary has {V} tokens, the source's has 60"):
        build_model(f"hf:{tmp_path}/model", {}, input=ARRAY, outputs=60)
    (tmp_path / "model" / "model.safetensors").unlink()
    torch.save(own.state_dict(), tmp_path / "model" / "pytorch_model.bin")
    with pytest.raises(UsageError, match=r"cannot be built"):
        build_model(f"hf:{tmp_path}/model", {}, input=ARRAY, outputs=V)


def test_a_folder_knows_its_own_task(tmp_path: Path) -> None:
    config = transformers.BertConfig(vocab_size=V, **SMALL, is_decoder=True)
    transformers.BertLMHeadModel(config).save_pretrained(tmp_path / "model")
    assert from_hf_language(f"{tmp_path}/model", {}, L, V).causal
    assert built("bert", task="causal", is_decoder=True).causal
    assert not built("bert").causal


@pytest.mark.parametrize(
    ("name", "args", "said"),
    [
        ("gtp2", {}, "neither a local folder nor a language model of transformers; did you mean 'gpt2'"),
        ("gpt2", {"n_embed": 4}, r"args.n_embed is no field of its configuration; did you mean 'n_embd'"),
        ("gpt2", {"vocab_size": 4}, "args.vocab_size comes from the data"),
        ("bert", {**SMALL, "task": "both"}, "task = 'both' must be"),
        (
            "bert",
            {**SMALL, "task": "causal"},
            r"cannot be run on packed rows \(head\(hidden states\) is not its logits",
        ),
        (
            "gemma2",
            {**SMALL, "num_key_value_heads": 1, "head_dim": 8, "final_logit_softcapping": 1e-3},
            r"Gemma2ForCausalLM cannot be run on packed rows .*scales or caps",
        ),
        ("gpt2", {"n_embd": 15, "n_head": 2}, "cannot be built with args"),
    ],
)
def test_what_cannot_be_built(name: str, args: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        build_model(f"hf:{name}", args, input=ARRAY, outputs=V)


def test_a_model_that_looks_back_less_than_a_row_is_refused() -> None:
    args = {**SMALL, "num_key_value_heads": 1, "sliding_window": 4}
    with pytest.raises(UsageError, match="does not look back a whole row"):
        build_model("hf:mistral", args, input=ARRAY, outputs=V)
    assert isinstance(build_model("hf:mistral", {**args, "sliding_window": L}, input=ARRAY, outputs=V), nn.Module)


def test_without_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(MissingExtra, match=r"the model hf:gpt2 needs transformers, .* 'kdcache\[hf\]'"):
        build_model("hf:gpt2", {}, input=ARRAY, outputs=V)


def test_the_librarys_own_remarks_come_back_afterwards() -> None:
    before = transformers.logging.get_verbosity()
    built("gpt2")
    assert transformers.logging.get_verbosity() == before
