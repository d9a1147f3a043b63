"""`hf:` sequence classifiers: BERT and its kin of transformers with one output a row, for `task = "classify"`.

The library's network keeps its names under `network`, as in `kdcache.zoo.language`, so the body of a masked language
model and that of a classifier of one type have the same names: one can begin with the weights of the other.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from kdcache.errors import UsageError
from kdcache.near_misses import near_misses
from kdcache.zoo.hugging_face import check_fields, library, quiet

__all__ = ["HuggingFaceClassifier", "check_vocabulary", "from_hf_classifier"]

_PADS = ("[PAD]", "<pad>")
_LENGTHS = ("max_position_embeddings", "n_positions")
_NEEDED = 'args.vocab_size, how many tokens the source\'s tokenizer has, is needed with task = "classify"'


class HuggingFaceClassifier(nn.Module):
    """Tokens [B, L] of any number type → logits [B, C]; tokens equal to `pad` are attended to by nobody.

    Taps of bert: `network.bert.encoder.layer.i`, the hidden states [B, L, D] after layer i, and `network.bert.pooler`
    [B, D]; of distilbert `network.distilbert.transformer.layer.i`. A row's first token is always seen.
    """

    def __init__(self, network: nn.Module, pad: int | None) -> None:
        super().__init__()
        self.network, self.pad = network, pad

    def forward(self, tokens: Tensor) -> Tensor:
        tokens = tokens.long()
        seen = tokens.new_ones(tokens.shape) if self.pad is None else (tokens != self.pad).long()
        seen[:, 0] = 1  # a row of padding alone has no softmax
        logits: Tensor = self.network(input_ids=tokens, attention_mask=seen).logits
        return logits


def check_vocabulary(model: nn.Module, reference: str, tokenizer: Mapping[str, Any] | None) -> None:
    """UsageError unless a classifier of token rows has as many tokens as the tokenizer, and masks the same padding.

    `tokenizer` is what a plan keeps of it (None: not known). More tokens than the tokenizer's are never read. Any other
    network is left alone.
    """
    if tokenizer is None or not isinstance(model, HuggingFaceClassifier):
        return
    size, own = tokenizer["size"], model.network.get_input_embeddings().num_embeddings  # type: ignore[operator]
    if own < size:
        raise UsageError(
            f"model {reference}: args.vocab_size = {own}, and the source's tokenizer has {size} tokens; give "
            f"vocab_size = {size}, or another [source] vocabulary"
        )
    special = tokenizer["special_tokens"]
    pad = next((special[name] for name in _PADS if name in special), model.pad)
    if model.pad is not None and model.pad != pad:
        raise UsageError(
            f"model {reference}: args.pad = {model.pad}, and the source's tokenizer fills rows up with token {pad}; "
            f"give pad = {pad}"
        )


def from_hf_classifier(name: str, args: Mapping[str, Any], length: int, outputs: int) -> HuggingFaceClassifier:
    """A classifier of token rows: a local folder with its weights, or a model type with random ones.

    `args` are `task` = "classify", `pad`, the token that fills short rows (default 0; -1 where none does), and fields
    of the configuration, of which `vocab_size` is needed for a model type. Code that a folder brings along is never
    run, nothing is fetched. Raises UsageError.
    """
    transformers = library(name)
    given = {key: value for key, value in args.items() if key not in ("task", "pad")}
    pad = args.get("pad", 0)
    if not isinstance(pad, int) or isinstance(pad, bool) or pad < -1:
        raise UsageError(f"hf:{name}: pad = {pad!r} must be a token's number, or -1 where rows are never filled up")
    with quiet(transformers):
        auto = transformers.AutoModelForSequenceClassification
        if Path(name).is_dir():
            network = auto.from_pretrained(
                name,
                num_labels=outputs,
                use_safetensors=True,
                trust_remote_code=False,
                local_files_only=True,
                **{"dtype": "float32", **given},
            )
        else:
            network = auto.from_config(
                _config(name, transformers, given, pad, length, outputs), trust_remote_code=False
            )
    if getattr(network.config, "is_encoder_decoder", False):
        raise UsageError(f"hf:{name}: an encoder with a decoder; encoders such as bert and distilbert are taken")
    return HuggingFaceClassifier(network.train(), None if pad < 0 else pad)


def _config(name: str, transformers: Any, args: Mapping[str, Any], pad: int, length: int, outputs: int) -> Any:
    known = transformers.models.auto.modeling_auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES
    if name not in known:
        raise UsageError(
            f"hf:{name} is neither a local folder nor a classifier of transformers; {near_misses(name, known)}"
        )
    default = transformers.AutoConfig.for_model(name)
    usual = {**default.to_dict(), **{key: key for key in default.attribute_map}}
    check_fields(name, args, usual)
    size = args.get("vocab_size")
    if not isinstance(size, int) or isinstance(size, bool) or size < 1:
        raise UsageError(f"hf:{name}: {_NEEDED}" + ("" if size is None else f", not {size!r}"))
    if pad >= size:
        raise UsageError(f"hf:{name}: pad = {pad} is none of its {size} tokens")
    # Some types number their first position 2.
    long = {key: max(usual[key], length + 2) for key in _LENGTHS if isinstance(usual.get(key), int)}
    ends = {key: None for key in ("bos_token_id", "eos_token_id") if (usual.get(key) or 0) >= size}
    fill = {"pad_token_id": None if pad < 0 else pad}
    return transformers.AutoConfig.for_model(name, **{**long, **ends, **fill, **args, "num_labels": outputs})
