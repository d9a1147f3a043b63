"""A language model's head, run on so many positions at a time that its logits never fill the memory."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

__all__ = ["CHUNK_BYTES", "Head"]

CHUNK_BYTES = 64 << 20


class Head:
    """hidden [n, D] → logits float32 [n, V], with the V outputs that `vocabulary` int64 [V] names (None: all).

    In half precision the weights are converted once; autocast would convert them again for every chunk.
    """

    def __init__(self, head: nn.Linear, vocabulary: Tensor | None, dtype: torch.dtype | None) -> None:
        weight, bias = head.weight.detach(), None if head.bias is None else head.bias.detach()
        if vocabulary is not None:
            first = torch.equal(vocabulary, torch.arange(len(vocabulary), device=vocabulary.device))
            kept = slice(len(vocabulary)) if first else vocabulary  # a slice is a view, and so takes no memory
            weight, bias = weight[kept], None if bias is None else bias[kept]
        self._exact = weight, bias
        self._fast = self._exact
        if dtype is not None:
            self._fast = weight.to(dtype), None if bias is None else bias.to(dtype)
        self.rows = max(1, CHUNK_BYTES // (4 * len(weight)))

    @torch.inference_mode()
    def chunks(self, hidden: Tensor) -> Iterator[tuple[int, int, Tensor]]:
        """(first, last, logits [last - first, V]) over hidden [N, D], with at most `CHUNK_BYTES` of logits at a time.

        A chunk with NaN or infinity is computed again in the weights' own precision, and comes out so if that does
        not help. One that does not fit into memory is halved.
        """
        for first in range(0, len(hidden), self.rows):
            yield from self._chunk(hidden, first, min(first + self.rows, len(hidden)))

    def _chunk(self, hidden: Tensor, first: int, last: int) -> Iterator[tuple[int, int, Tensor]]:
        try:
            logits = _linear(hidden[first:last], *self._fast)
            if self._fast is not self._exact and not torch.isfinite(logits.sum()):
                logits = _linear(hidden[first:last], *self._exact)
        except torch.OutOfMemoryError:
            if last - first == 1:
                raise
        else:
            yield first, last, logits
            return
        torch.cuda.empty_cache()
        middle = (first + last) // 2
        yield from self._chunk(hidden, first, middle)
        yield from self._chunk(hidden, middle, last)


def _linear(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return linear(hidden.to(weight.dtype), weight, bias).float()
