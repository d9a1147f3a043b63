"""A network of the zoo that is also told facts, or that has several heads, or both.

The base network runs up to its `head`; what the head would be given are the features [B, D]. The further inputs of the
recipe, `inputs = ["input", "fact"]`, are laid side by side as one vector of facts [B, F], which is concatenated to the
features or, after a linear map, added to them. In training the facts of a share `drop` of the samples are zeroed, so
that the network can also do without: zeros, or no facts at all, stand for none known.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from kdcache.errors import UsageError
from kdcache.near_misses import near_misses
from kdcache.zoo.arguments import choice, share
from kdcache.zoo.foreign import call
from kdcache.zoo.sequence import is_language_model

__all__ = ["Fused", "fused"]


class Fused(nn.Module):
    """(input, *facts) → logits [B, C], or {"logits": [B, C], NAME: [B, C'], ...} with more heads.

    Taps: `base.TAP` for every tap of the base network, its `pooled` without the facts; `features` [B, D + F] or [B, D],
    what the heads are given.
    """

    def __init__(
        self, base: nn.Module, width: int, facts: int, add: bool, drop: float, heads: Mapping[str, int], outputs: int
    ) -> None:
        super().__init__()
        self.base, self.facts, self.drop = base, facts, drop
        self.embedding = nn.Linear(facts, width) if facts and add else None
        self.features = nn.Identity()
        width += 0 if add else facts
        self.head = nn.Linear(width, outputs)
        self.heads = nn.ModuleDict({name: nn.Linear(width, count) for name, count in heads.items()})

    def forward(self, x: Tensor, *facts: Tensor) -> Tensor | dict[str, Tensor]:
        features = self.base(x)
        if self.facts:
            known = self._known(facts, features)
            features = torch.cat([features, known], 1) if self.embedding is None else features + self.embedding(known)
        features = self.features(features)
        logits: Tensor = self.head(features)
        if not self.heads:
            return logits
        return {"logits": logits, **{name: head(features) for name, head in self.heads.items()}}

    def _known(self, facts: Sequence[Tensor], features: Tensor) -> Tensor:
        """The facts side by side, [B, F] as the features are, zeroed for a share of the samples while training."""
        if not facts:
            return features.new_zeros(len(features), self.facts)
        known = torch.cat([fact.reshape(len(fact), -1).to(features.dtype) for fact in facts], dim=1)
        if not self.training or not self.drop:
            return known
        return known * (torch.rand(len(known), 1, device=known.device) >= self.drop)


def fused(
    input_shape: tuple[int, ...],
    num_classes: int,
    extra_shapes: Sequence[tuple[int, ...]] = (),
    *,
    base: str,
    args: Mapping[str, Any] | None = None,
    how: str = "concatenate",
    drop: float = 0.0,
    heads: Mapping[str, int] | None = None,
) -> Fused:
    """The network zoo:`base` with its `args`, facts taken in by `how` = "concatenate" or "add", and more `heads`.

    `heads` gives each further output its number of classes: {coarse = 20} → the output "coarse", for an objective with
    output = "coarse". Without facts and without heads it is the base network.
    """
    from kdcache.zoo import ZOO  # which holds this factory too

    if not isinstance(base, str) or base not in ZOO or base == "fused":
        raise UsageError(f"zoo:fused: base = {base!r}: {near_misses(str(base), ZOO.keys() - {'fused'})}")
    if not isinstance(args, Mapping | None) or {"input_shape", "num_classes", "extra_shapes"} & (args or {}).keys():
        raise UsageError(
            f"zoo:fused: args = {args!r} must be the arguments of zoo:{base}, without any that the data gives"
        )
    choice("zoo:fused", "how", how, ("add", "concatenate"))
    body = call(f"zoo:{base}", ZOO[base], args or {}, {"input_shape": input_shape, "num_classes": num_classes})
    head = getattr(body, "head", None)
    several = getattr(body, "distillation_head", None) is not None
    if not isinstance(body, nn.Module) or not isinstance(head, nn.Linear) or is_language_model(body) or several:
        raise UsageError(f"zoo:fused: base = {base!r} has no single head of one output a sample; take a classifier")
    body.head = nn.Identity()
    more = _checked(heads or {})
    facts = sum(math.prod(shape) for shape in extra_shapes)
    return Fused(body, head.in_features, facts, how == "add", share("zoo:fused", "drop", drop), more, num_classes)


def _checked(heads: object) -> Mapping[str, int]:
    if isinstance(heads, Mapping) and all(
        isinstance(name, str) and name.isidentifier() and name != "logits" and type(count) is int and count > 0
        for name, count in heads.items()
    ):
        return heads
    raise UsageError(
        f"zoo:fused: heads = {heads!r} must give names, other than logits, a positive whole number of classes each"
    )
