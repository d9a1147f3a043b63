"""A small vision transformer (Dosovitskiy et al. 2021), with DeiT's distillation token (Touvron et al. 2021) or not.

An image is cut into patches, each becomes a token by one linear map; a class token stands before them, learned
positions are added, and pre-norm blocks follow. With `distillation_token` a second token has a head of its own, which a
teacher trains while labels train the first: the mapping has "class" and "distillation", and "logits" is the mean of the
two heads' logits, in training too, so that a metric always reads what the network would answer. The paper speaks of
adding the heads' softmax outputs at inference; its code takes the mean of the logits, and so do we.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from kdcache.errors import UsageError
from kdcache.zoo.arguments import flag, image_shape, share, whole_number, with_channels
from kdcache.zoo.gpt import Block

__all__ = ["ViT", "vit"]


class ViT(nn.Module):
    """[B, C, H, W] or [B, H, W] → logits [B, C], or {"logits", "class", "distillation"}, each [B, C].

    Taps: `blocks.i`, the tokens [B, 1 + P, D] after block i, the class token first ([B, 2 + P, D] with a distillation
    token, which is second); `norm`, the same after the last norm; `pooled`, the class token [B, D].
    """

    def __init__(
        self, shape: tuple[int, int, int], patch: int, width: int, depth: int, heads: int, dropout: float, special: int,
        outputs: int,
    ) -> None:  # fmt: skip
        super().__init__()
        channels, height, breadth = shape
        patches = (height // patch) * (breadth // patch)
        self.patches = nn.Conv2d(channels, width, patch, stride=patch)
        self.special = nn.Parameter(torch.empty(1, special, width))
        self.position = nn.Parameter(torch.empty(1, special + patches, width))
        self.drop = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(Block(width, heads, dropout, causal=False) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.pooled = nn.Identity()
        self.head = nn.Linear(width, outputs)
        self.distillation_head = nn.Linear(width, outputs) if special == 2 else None
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(parameter)
            elif "norm" not in name:
                nn.init.trunc_normal_(parameter, std=0.02)

    def forward(self, x: Tensor) -> Tensor | dict[str, Tensor]:
        patches = self.patches(with_channels(x)).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.special.expand(len(patches), -1, -1), patches], dim=1)
        tokens = self.drop(tokens + self.position)
        for block in self.blocks:
            tokens = block(tokens, None, None)
        tokens = self.norm(tokens)
        logits: Tensor = self.head(self.pooled(tokens[:, 0]))
        if self.distillation_head is None:
            return logits
        distillation = self.distillation_head(tokens[:, 1])
        return {"logits": (logits + distillation) / 2, "class": logits, "distillation": distillation}


def vit(
    input_shape: tuple[int, ...],
    num_classes: int,
    *,
    patch: int = 4,
    width: int = 128,
    depth: int = 6,
    heads: int = 4,
    dropout: float = 0.0,
    distillation_token: bool = False,
) -> ViT:
    """`depth` blocks of `width` channels over patches of `patch` x `patch` pixels.

    For 3x32x32 and ten classes the defaults have 1.21 million parameters.
    """
    for name, value in {"patch": patch, "width": width, "depth": depth, "heads": heads}.items():
        whole_number("zoo:vit", name, value)
    if width % heads:
        raise UsageError(f"zoo:vit: width = {width} must be a multiple of its heads = {heads}")
    shape = image_shape("zoo:vit", input_shape, patch)
    if shape[1] % patch or shape[2] % patch:
        raise UsageError(f"zoo:vit: patch = {patch} must divide both sides of the image, {shape[1]}x{shape[2]}")
    special = 2 if flag("zoo:vit", "distillation_token", distillation_token) else 1
    return ViT(shape, patch, width, depth, heads, share("zoo:vit", "dropout", dropout), special, num_classes)
