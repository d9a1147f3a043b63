"""`hf:` language models: causal and masked ones of transformers, as networks with `hidden`, `head` and `causal`.

The network runs whole, with its output embedding put aside, so what comes out is what that embedding is given: the
hidden states. Positions begin anew in every segment and a mask keeps attention inside it. Not every architecture can
be used so: some scale or cap their logits, some carry a state along the row, some look only so far back. So two rows
are compared with the model as it came, and a packed row with its documents alone; a model that differs is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kdcache.errors import UsageError
from kdcache.near_misses import near_misses
from kdcache.zoo.hugging_face import check_fields, library, quiet
from kdcache.zoo.sequence import attention_mask, positions

__all__ = ["HuggingFaceLM", "from_hf_language", "vocabulary_of"]

_TOLERANCE = {torch.float32: 1e-4}  # of the largest value: attention with and without a mask rounds otherwise
_ROUGH = 2e-2  # in half precision
_LENGTHS = ("max_position_embeddings", "n_positions")


class HuggingFaceLM(nn.Module):
    """A language model of transformers: tokens int64 [B, L] → logits [B, L, V].

    `network` is the library's own without its output embedding, which is `head`: taps are paths such as
    `network.transformer.h.3`. `first_place` is the number of a document's first position, None for a model that is
    not told positions.
    """

    def __init__(self, network: nn.Module, head: nn.Linear, causal: bool, first_place: int | None) -> None:
        super().__init__()
        self.network, self.head, self.causal = network, head, causal
        self.first_place = first_place

    def hidden(self, tokens: Tensor, segment: Tensor | None = None) -> Tensor:
        """What the head is given, float [B, L, D], of `tokens` and `segment` int64 [B, L]."""
        segment = torch.zeros_like(tokens) if segment is None else segment
        seen = attention_mask(segment, self.causal)
        dtype = self.head.weight.dtype
        mask = torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill(~seen, torch.finfo(dtype).min)
        places = {} if self.first_place is None else {"position_ids": positions(segment) + self.first_place}
        states: Tensor = self.network(input_ids=tokens, attention_mask=mask, **places).logits
        return states

    def forward(self, tokens: Tensor, segment: Tensor | None = None) -> Tensor:
        logits: Tensor = self.head(self.hidden(tokens, segment))
        return logits


def from_hf_language(name: str, args: Mapping[str, Any], length: int, outputs: int) -> HuggingFaceLM:
    """A language model of transformers: a local folder with its weights, or a model type with random ones.

    `args` are fields of its configuration, and `task` = "causal" or "masked" where its type does both; `dtype` is what
    the weights of a folder are loaded as (default float32). `task` = "classify" makes no language model, see
    `kdcache.zoo.sequence_classifier`. Code that a folder brings along is never run, nothing is fetched.
    Raises UsageError, also for a model whose vocabulary is not `outputs` or that cannot be run on packed rows.
    """
    transformers = library(name)
    given = {key: value for key, value in args.items() if key != "task"}
    if "vocab_size" in given:
        raise UsageError(f"hf:{name}: args.vocab_size comes from the data; leave it out")
    with quiet(transformers):
        if Path(name).is_dir():
            config = transformers.AutoConfig.from_pretrained(name, trust_remote_code=False, local_files_only=True)
            if config.vocab_size != outputs:
                raise UsageError(
                    f"hf:{name}: its vocabulary has {config.vocab_size} tokens, the source's has {outputs}; use the "
                    "model's own tokenizer: [source] tokenizer"
                )
            causal = _is_causal(name, transformers, config, args)
            model = _auto(transformers, causal).from_pretrained(
                name,
                use_safetensors=True,
                trust_remote_code=False,
                local_files_only=True,
                **{"dtype": "float32", **given},
            )
        else:
            config = _config(name, transformers, given, length, outputs)
            causal = _is_causal(name, transformers, config, args)
            model = _auto(transformers, causal).from_config(config, trust_remote_code=False)
    if getattr(model.config, "is_encoder_decoder", False):
        raise UsageError(f"hf:{name}: an encoder with a decoder; causal and masked language models are taken")
    model.config.use_cache = False
    return _split(name, model.eval(), causal, length).train()


def vocabulary_of(reference: str) -> int | None:
    """How many tokens the model of a local folder, hf:FOLDER, has; None for any other reference."""
    family, _, name = reference.partition(":")
    if family != "hf" or not Path(name).is_dir():
        return None
    transformers = library(name)
    try:
        config = transformers.AutoConfig.from_pretrained(name, trust_remote_code=False, local_files_only=True)
        return int(config.vocab_size)
    except Exception as error:  # the library raises what it likes
        raise UsageError(
            f"{reference}: its config.json says no vocabulary ({type(error).__name__}: {error})"
        ) from error


def _config(name: str, transformers: Any, args: Mapping[str, Any], length: int, outputs: int) -> Any:
    names = transformers.models.auto.modeling_auto
    known = names.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES | names.MODEL_FOR_MASKED_LM_MAPPING_NAMES
    if name not in known:
        raise UsageError(
            f"hf:{name} is neither a local folder nor a language model of transformers; {near_misses(name, known)}"
        )
    default = transformers.AutoConfig.for_model(name)
    usual = {**default.to_dict(), **{key: key for key in default.attribute_map}}
    check_fields(name, args, usual)
    # Some types number their first position 2.
    long = {key: max(usual[key], length + 2) for key in _LENGTHS if isinstance(usual.get(key), int)}
    ends = {key: None for key in ("bos_token_id", "eos_token_id") if (usual.get(key) or 0) >= outputs}
    return transformers.AutoConfig.for_model(name, **{**long, **ends, **args, "vocab_size": outputs})


def _is_causal(name: str, transformers: Any, config: Any, args: Mapping[str, Any]) -> bool:
    """By `task`, else by the class that a folder's weights were saved from, else masked where the type can be."""
    if "task" in args:
        if args["task"] not in ("causal", "masked"):
            raise UsageError(f'hf:{name}: task = {args["task"]!r} must be "causal", "masked" or "classify"')
        return bool(args["task"] == "causal")
    saved = " ".join(getattr(config, "architectures", None) or ())
    if "MaskedLM" in saved or "CausalLM" in saved or "LMHead" in saved:
        return "MaskedLM" not in saved
    return config.model_type not in transformers.models.auto.modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES


def _auto(transformers: Any, causal: bool) -> Any:
    return transformers.AutoModelForCausalLM if causal else transformers.AutoModelForMaskedLM


@torch.no_grad()
def _split(name: str, model: nn.Module, causal: bool, length: int) -> HuggingFaceLM:
    """The model with its output embedding taken out, once it is seen to give the same logits so."""
    head = model.get_output_embeddings()  # type: ignore[operator]
    path = next((path for path, module in model.named_modules() if module is head), None)
    if not isinstance(head, nn.Linear) or path is None:
        raise UsageError(f"hf:{name}: its output embedding is a {type(head).__name__}; a linear one is needed")
    tokens = _probe(model, length)
    own = model(input_ids=tokens).logits
    parent, _, last = path.rpartition(".")
    setattr(model.get_submodule(parent), last, nn.Identity())
    pad = getattr(model.config, "pad_token_id", None)
    trials = [HuggingFaceLM(model, head, causal, place) for place in (0, None if pad is None else pad + 1, None)]
    failed = "?"
    for trial in trials:
        try:
            found, packed = trial(tokens), _packed_and_apart(trial, tokens)
        except Exception as error:  # it takes no such argument, has no such position, wants another mask
            failed = f"{type(error).__name__}: {error}"
            continue
        if not _close(found, own):
            failed = "head(hidden states) is not its logits: it scales or caps them, or does not look back a whole row"
        elif not _close(*packed):
            failed = "a packed document does not get the hidden states that it has alone"
        else:
            return trial
    raise UsageError(
        f"hf:{name}: this {type(model).__name__} cannot be run on packed rows ({failed}); take another model, or give "
        "a factory of your own, package.module:factory, whose network has hidden(), head and causal"
    )


def _probe(model: nn.Module, length: int) -> Tensor:
    """Two rows of tokens, int64 [2, L], of which no neighbours are alike and none is the padding token."""
    config: Any = model.config
    special = {getattr(config, f"{name}_token_id", None) for name in ("pad", "bos", "eos")}
    usable = torch.tensor([token for token in range(min(config.vocab_size, 1 << 16)) if token not in special])
    return usable[torch.arange(2 * length).mul(7).reshape(2, length) % len(usable)]


def _packed_and_apart(model: HuggingFaceLM, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Hidden states of rows of two documents, packed and each alone, both [2, L, D]."""
    middle = tokens.shape[1] // 2
    segment = (torch.arange(tokens.shape[1]) >= middle).long().expand_as(tokens)
    alone = [model.hidden(part) for part in (tokens[:, :middle], tokens[:, middle:])]
    return model.hidden(tokens, segment), torch.cat(alone, dim=1)


def _close(found: Tensor, wanted: Tensor) -> bool:
    if found.shape != wanted.shape:
        return False
    bound = _TOLERANCE.get(wanted.dtype, _ROUGH) * float(wanted.abs().max())
    return bool((found - wanted).abs().max() <= bound)
