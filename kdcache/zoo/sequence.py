"""What every language model here has in common: its parts, and attention that stays inside a document.

Rows are packed: several documents stand one after the other, and `segment` numbers them. A token attends only to its
own segment, and positions begin at 0 in each, so a packed document gets the hidden states that it has alone.
"""

from __future__ import annotations

from typing import Protocol, TypeGuard, runtime_checkable

import torch
from torch import Tensor, nn

from kdcache.arrays import Array

__all__ = ["LanguageModel", "attention_mask", "is_language_model", "is_tokens", "positions"]


@runtime_checkable
class LanguageModel(Protocol):
    """A network whose forward is head(hidden(tokens, segment)): float [B, L, V] logits."""

    head: nn.Linear
    causal: bool

    def hidden(self, tokens: Tensor, segment: Tensor | None = None) -> Tensor:
        """Float [B, L, D] before the head, of `tokens` int64 [B, L] and `segment` int64 [B, L] (None: one segment)."""

    def __call__(self, tokens: Tensor, segment: Tensor | None = None) -> Tensor:
        """head(hidden(tokens, segment)), float [B, L, V]."""


def is_language_model(model: object) -> TypeGuard[LanguageModel]:
    """Whether a network has `hidden`, a linear `head` and `causal`, and so is used as a language model."""
    return (
        callable(getattr(model, "hidden", None))
        and not isinstance(getattr(model, "hidden", None), nn.Module)
        and isinstance(getattr(model, "head", None), nn.Linear)
        and isinstance(getattr(model, "causal", None), bool)
    )


def is_tokens(input: Array) -> bool:
    """Whether stored inputs are rows of token ids: int32 [L]."""
    return input.dtype == "int32" and len(input.shape) == 1


def positions(segment: Tensor) -> Tensor:
    """Place of each token inside its segment, int64 [B, L], from `segment` [B, L] (equal numbers stand together)."""
    places = torch.arange(segment.shape[1], device=segment.device).expand_as(segment)
    first = torch.ones_like(segment, dtype=torch.bool)
    first[:, 1:] = segment[:, 1:] != segment[:, :-1]
    return places - torch.where(first, places, 0).cummax(1).values


def attention_mask(segment: Tensor, causal: bool) -> Tensor:
    """Bool [B, 1, L, L], True where the query (axis 2) sees the key (axis 3): same segment, and not after it."""
    same = segment[:, :, None] == segment[:, None, :]
    return (same.tril() if causal else same)[:, None]
