"""Documents of token ids, packed end to end into rows of one length, with their boundaries kept.

The documents are laid one after the other and the whole is cut every L tokens, so no token is lost or repeated and
only the last row may be padded. A document that crosses a cut goes on in the next row as a new segment: its first
token there has no target, as a causal model sees nothing before it. A document of one token takes its place as a
segment of its own and is never scored. The padding is a segment of its own too, with nothing in it scored.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdcache.errors import SourceError, UsageError
from kdcache.keyed import keyed_hash
from kdcache.sources.source import Ids, Rows

__all__ = ["LONGEST", "Masking", "Packing", "checked_length", "concatenate"]

LONGEST = (1 << 16) - 1  # a segment number is uint16, and the padding needs one of its own
_UNIT = 2.0**-53


@dataclass(frozen=True)
class Masking:
    """Masking for masked language models: a share of the tokens is hidden and asked for.

    Devlin et al. 2019 (BERT), section 3.1: each ordinary token is chosen with probability `share`; of the chosen, 80 %
    become `mask`, 10 % another ordinary token drawn evenly, 10 % stay. The draws are keyed by (seed, row, place), so
    a row is masked alike whenever it is read.
    """

    share: float
    mask: int
    ordinary: NDArray[np.int32]  # ids that are no special token, ascending
    seed: int

    def apply(self, tokens: NDArray[np.int32], places: NDArray[np.int64]) -> tuple[NDArray[Any], NDArray[Any]]:
        """(masked input, label: the token where one was chosen, else -1) of tokens at places of the whole, both [R, L].

        A place that is padding is given as -1 and left alone, as special tokens are.
        """
        chance, fate, other = (self._draw(what, places) for what in ("chosen", "fate", "other"))
        chosen = (chance < self.share) & (places >= 0) & np.isin(tokens, self.ordinary)
        drawn = self.ordinary[(other * len(self.ordinary)).astype(np.int64)]
        hidden = np.where(fate < 0.8, np.int32(self.mask), np.where(fate < 0.9, drawn, tokens))
        return np.where(chosen, hidden, tokens), np.where(chosen, tokens, np.int32(-1))

    def _draw(self, what: str, places: NDArray[np.int64]) -> NDArray[np.float64]:
        """Uniform in [0, 1) for each place."""
        bits = keyed_hash(f"kdcache-mask-1|{what}|{self.seed}", places)
        return (bits >> np.uint64(11)).astype(np.float64) * _UNIT


@dataclass(frozen=True, eq=False)
class Packing:
    """Tokens of all documents, int32 [N], with the first place of each, int64 ascending, read as rows of `length`.

    `scored` bool [N] says which tokens count as targets (all, where it is None); `pad` is what fills the last row.
    """

    tokens: NDArray[np.int32]
    starts: NDArray[np.int64]
    scored: NDArray[np.bool_] | None
    length: int
    pad: int
    masking: Masking | None = None

    def __len__(self) -> int:
        return -(-len(self.tokens) // self.length)

    @property
    def targets(self) -> int:
        """P: targets a row, `length` - 1 for a causal model, `length` for a masked one."""
        return self.length if self.masking else self.length - 1

    def rows(self, ids: Ids) -> Rows:
        """`input` int32 [R, L], `segment` uint16 [R, L] from 0, `label` int32 [R, P] (-1 = not scored)."""
        places = ids[:, None] * self.length + np.arange(self.length)
        real = places < len(self.tokens)
        inside = np.minimum(places, len(self.tokens) - 1)
        tokens = np.where(real, self.tokens[inside], np.int32(self.pad)).astype(np.int32)
        document = np.searchsorted(self.starts, inside, side="right")
        segment = np.where(real, document, document + 1) - document[:, :1]
        scored = real if self.scored is None else real & self.scored[inside]
        if self.masking:
            tokens, label = self.masking.apply(tokens, np.where(scored, places, -1))
        else:
            follows = scored[:, 1:] & (segment[:, 1:] == segment[:, :-1])
            label = np.where(follows, tokens[:, 1:], np.int32(-1))
        return {
            "input": np.ascontiguousarray(tokens, dtype="<i4"),
            "segment": segment.astype("<u2"),
            "label": np.ascontiguousarray(label, dtype="<i4"),
        }


def concatenate(
    documents: Sequence[NDArray[np.int32]], scored: Sequence[NDArray[np.bool_]] | None, *, causal: bool, place: str
) -> tuple[NDArray[np.int32], NDArray[np.int64], NDArray[np.bool_] | None]:
    """(tokens, starts, scored) of the documents laid end to end, empty ones left out.

    SourceError for fewer than 2 tokens in all or, for a causal model, in every document.
    """
    kept = [i for i, document in enumerate(documents) if len(document)]
    lengths = np.array([len(documents[i]) for i in kept], dtype=np.int64)
    if lengths.sum() < 2:
        raise SourceError(
            f"{place}: {int(lengths.sum())} tokens in all; a language model needs at least 2, one to predict the other"
        )
    tokens = np.concatenate([documents[i] for i in kept]).astype(np.int32, copy=False)
    if causal and lengths.max() < 2:
        raise SourceError(
            f"{place}: each of its {len(kept)} documents is one token, and a token is predicted from those before it "
            'in its document; cut it otherwise, for instance document = "file"'
        )
    starts = np.cumsum(lengths) - lengths
    return tokens, starts, None if scored is None else np.concatenate([scored[i] for i in kept])


def checked_length(length: int) -> int:
    """`length`, or a UsageError unless a row of so many tokens has a target and its segments can be numbered."""
    if not 2 <= length <= LONGEST:
        raise UsageError(f"[source] length = {length}: a row holds 2 to {LONGEST} tokens")
    return length
