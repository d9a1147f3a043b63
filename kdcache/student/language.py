"""Networks that are fitted on sequences of tokens, and the positions of a batch that count."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

from torch import Tensor, nn

from kdcache.arrays import Array
from kdcache.codecs import Targets, flat
from kdcache.errors import UsageError
from kdcache.zoo.sequence import LanguageModel, is_language_model

__all__ = ["Scored", "check_language_model", "head_chunks", "scored_positions"]

_CHUNK_VALUES = 1 << 22  # logits that are there at once where no gradient is wanted


class Scored(NamedTuple):
    """The N scored positions of a batch: hidden [N, D], label int64 [N], and their places int64 [N] among all B * P;
    `targets` is P."""

    hidden: Tensor
    label: Tensor
    places: Tensor
    targets: int

    def of(self, targets: Targets) -> Targets:
        """The rows of targets [B, P, ...], or of states [B, L, D], that belong to these positions, [N, ...]."""
        if isinstance(targets, Tensor) and targets.dim() == 3:
            targets = targets[:, : self.targets]  # the last state of a causal model predicts nothing that the row holds
        found: Targets = flat(targets)[self.places]
        return found


def check_language_model(model: nn.Module, reference: str, sample: Array, positions: int, vocabulary: int) -> None:
    """UsageError unless the network takes rows of tokens `sample` and predicts `positions` of a vocabulary from them.

    It needs `hidden(tokens, segment)`, `head` (a Linear onto the vocabulary) and `causal`.
    """
    if not is_language_model(model):
        raise UsageError(
            f"model {reference}: {type(model).__name__} is no language model, and the rows are sequences of tokens "
            f"{sample}; take one such as zoo:gpt, or a module with hidden(tokens, segment), head and causal"
        )
    if model.head.out_features != vocabulary:
        raise UsageError(
            f"model {reference}: its vocabulary has {model.head.out_features} tokens, the store's has {vocabulary}; "
            "give the student the store's vocabulary: a token id means the same in both or nothing"
        )
    length = sample.shape[0]
    if positions != (length - 1 if model.causal else length):
        kind = "causal" if model.causal else "masked"
        raise UsageError(
            f"model {reference}: is {kind}, and a row of {length} tokens has {positions} targets; a causal model has "
            f"{length - 1}, each the next token, a masked one {length}: take a network of the other kind, or another "
            "[source]"
        )


def scored_positions(model: LanguageModel, batch: Mapping[str, Targets]) -> Scored:
    """Run a language model over `input` [B, L] up to its last layer; keep the positions whose `label` is 0 or more."""
    tokens, segment, label = batch["input"], batch.get("segment"), batch["label"]
    assert isinstance(tokens, Tensor)
    assert isinstance(label, Tensor)
    inside = segment.long() if isinstance(segment, Tensor) else None
    hidden = model.hidden(tokens.long(), inside)
    if model.causal:
        hidden = hidden[:, :-1]
    wanted = label.reshape(-1)
    places = (wanted >= 0).nonzero().squeeze(1)
    return Scored(hidden.reshape(-1, hidden.shape[-1])[places], wanted[places].long(), places, label.shape[1])


def head_chunks(model: LanguageModel, scored: Scored) -> Iterator[tuple[Tensor, slice]]:
    """Logits float32 [n, V] of run after run of the positions: [B, P, V] is never there at once."""
    step = max(1, _CHUNK_VALUES // model.head.out_features)
    for first in range(0, len(scored.label), step):
        part = slice(first, first + step)
        yield model.head(scored.hidden[part]).float(), part
