"""A small transformer over tokens, decoder-only (GPT) or, with `causal = false`, bidirectional as BERT is.

Pre-norm blocks (Radford et al. 2019, section 2.3): x + attention(norm(x)), then x + mlp(norm(x)) with GELU and four
times the width, a last norm, and a head that is tied to the token embedding or not. Positions are rotary (Su et al.
2021, equation 34) or learned, and begin anew in every segment of a packed row.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from kdcache.errors import UsageError
from kdcache.zoo.arguments import choice, flag, share, whole_number
from kdcache.zoo.sequence import attention_mask, positions

__all__ = ["GPT", "Block", "gpt"]

_BASE = 10_000.0


class Attention(nn.Module):
    """Multi-head self-attention, [B, L, D] → [B, L, D]. `mask` None: one segment, all of it (causal: up to here)."""

    def __init__(self, width: int, heads: int, dropout: float, causal: bool) -> None:
        super().__init__()
        self.heads, self.dropout, self.causal = heads, dropout, causal
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor, mask: Tensor | None, rotation: tuple[Tensor, Tensor] | None) -> Tensor:
        q, k, v = self.qkv(x).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        if rotation:
            q, k = _rotate(q, *rotation), _rotate(k, *rotation)
        dropout = self.dropout if self.training else 0.0
        y = scaled_dot_product_attention(q, k, v, mask, dropout, is_causal=self.causal and mask is None)
        seen: Tensor = self.out(y.transpose(1, 2).flatten(2))
        return seen


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)), [B, L, D] → [B, L, D]."""

    def __init__(self, width: int, heads: int, dropout: float, causal: bool) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attention = Attention(width, heads, dropout, causal)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        self.drop = nn.Dropout(dropout)

    def forward(self, x: Tensor, mask: Tensor | None, rotation: tuple[Tensor, Tensor] | None) -> Tensor:
        x = x + self.drop(self.attention(self.norm1(x), mask, rotation))
        y: Tensor = x + self.drop(self.mlp(self.norm2(x)))
        return y


class GPT(nn.Module):
    """Tokens int64 [B, L] → logits [B, L, V]. Taps: `blocks.i`, the stream after block i, and `norm`, [B, L, D]."""

    def __init__(
        self,
        length: int,
        vocabulary: int,
        *,
        width: int,
        layers: int,
        heads: int,
        dropout: float,
        tied: bool,
        causal: bool,
        rotary: bool,
    ) -> None:
        super().__init__()
        self.causal, self.rotary, self.channels = causal, rotary, width // heads
        self.embedding = nn.Embedding(vocabulary, width)
        self.position = None if rotary else nn.Embedding(length, width)
        self.drop = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(Block(width, heads, dropout, causal) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, vocabulary, bias=False)
        self.apply(_initial)
        for block in self.blocks:  # what is added to the stream starts smaller the more layers add to it
            for name in ("attention.out", "mlp.2"):
                nn.init.normal_(block.get_submodule(name).weight, std=0.02 / math.sqrt(2 * layers))  # type: ignore[arg-type]
        self.tied = tied
        self._tie()

    def _tie(self) -> None:
        if self.tied:
            self.head.weight = self.embedding.weight

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> GPT:
        """Tied also after a move that makes new parameters, as `to_empty` does."""
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self._tie()
        return self

    def hidden(self, tokens: Tensor, segment: Tensor | None = None) -> Tensor:
        """The stream after the last norm, float [B, L, D], of `tokens` and `segment` int64 [B, L]."""
        place = torch.arange(tokens.shape[1], device=tokens.device)[None] if segment is None else positions(segment)
        mask = None if segment is None else attention_mask(segment, self.causal)
        x = self.embedding(tokens)
        if self.position is not None:
            x = x + self.position(place)
        rotation = _rotation(place, self.channels) if self.rotary else None
        x = self.drop(x)
        for block in self.blocks:
            x = block(x, mask, rotation)
        stream: Tensor = self.norm(x)
        return stream

    def forward(self, tokens: Tensor, segment: Tensor | None = None) -> Tensor:
        logits: Tensor = self.head(self.hidden(tokens, segment))
        return logits


def gpt(
    input_shape: tuple[int, ...],
    num_classes: int,
    *,
    width: int = 128,
    layers: int = 4,
    heads: int = 4,
    dropout: float = 0.0,
    tied: bool = True,
    causal: bool = True,
    positions: Literal["rotary", "learned"] = "rotary",
) -> GPT:
    """A transformer of `layers` blocks for rows of `input_shape` = (L,) tokens and a vocabulary of `num_classes`."""
    if len(input_shape) != 1:
        raise UsageError(f"zoo:gpt takes rows of tokens [L]; this input has shape {list(input_shape)}")
    for name, value in {"width": width, "layers": layers, "heads": heads}.items():
        whole_number("zoo:gpt", name, value)
    if width % (2 * heads):
        raise UsageError(f"zoo:gpt: width = {width} must be a multiple of twice its heads = {heads}")
    choice("zoo:gpt", "positions", positions, ("rotary", "learned"))
    return GPT(
        input_shape[0],
        num_classes,
        width=width,
        layers=layers,
        heads=heads,
        dropout=share("zoo:gpt", "dropout", dropout),
        tied=flag("zoo:gpt", "tied", tied),
        causal=flag("zoo:gpt", "causal", causal),
        rotary=positions == "rotary",
    )


def _rotation(place: Tensor, channels: int) -> tuple[Tensor, Tensor]:
    """Cosine and sine [B, 1, L, channels / 2] of the angle of each pair of channels, position * base^(-2i/channels)."""
    rate = _BASE ** (-torch.arange(0, channels, 2, device=place.device) / channels)
    angle = place[:, None, :, None] * rate
    return angle.cos(), angle.sin()


def _rotate(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """x [B, heads, L, channels] with channel i turned against channel i + channels / 2."""
    first, second = x.chunk(2, dim=-1)
    turned = torch.cat([first * cosine - second * sine, second * cosine + first * sine], dim=-1)
    return turned.to(x.dtype)


def _initial(module: nn.Module) -> None:
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=0.02)
    if isinstance(module, nn.Linear) and module.bias is not None:
        nn.init.zeros_(module.bias)
