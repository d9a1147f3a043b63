"""Contrastive representation distillation: a sample's two embeddings together, those of different samples apart."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from kdcache.errors import UsageError
from kdcache.objectives.gather import global_batch
from kdcache.objectives.matching import row_mean
from kdcache.objectives.shapes import Shapes

__all__ = ["CRD"]


class CRD(nn.Module):
    """-log h of the positive - sum over K negatives of log(1 - h), from either side, added: mean over rows, in nats.

    Tian et al. 2020, eqs. 18 and 19: h = e / (e + K / N), e = exp(v . w / temperature) / Z, with v and w unit vectors
    of `width` numbers from a linear layer per side (both are trained) and Z N times the first batch's mean of the
    exponentials, fixed from then on. Written as h = sigmoid(v . w / temperature - b), b = log(K Z / N).
    The K `negatives` are drawn uniformly, with replacement, among the N - 1 other samples, whose embeddings two banks
    hold as they were when last seen: w <- unit(momentum w + (1 - momentum) v), in training only. The positive is the
    bank's too, as in the paper's code: against the other embedding of now, both sides part from the banks together,
    which lowers the loss and teaches nothing (measured: a sample then finds its own teacher's embedding no more often
    than by chance). Evaluation pairs the two of now, since a held-out sample has never entered the banks.

    The paper has K = 16384 for N = 50,000. As a sum over negatives the loss begins near 2 (1 + log K); the paper
    weighs it 0.8. The draw is from torch's global generator of the device, the rest of the state is in the buffers.

    `shapes` hold one feature a side, a vector [D], map [D, H, W] (its mean over space is taken) or states [L, D]
    (their mean over positions), and all ids. Processes that train together keep the same banks: in training each of
    them has to call it as often. A few tensors of B x N floats exist for a moment, and none is kept for
    the backward pass, so memory does not grow with K x width. Double backward is not defined.
    """

    bank: Tensor  # float32 [2, N, width]: the student's embeddings, then the teacher's
    shift: Tensor  # float32 [2]: b of the student's scores against the teacher's bank, and the other way round
    fixed: Tensor  # bool []: whether a batch has set `shift`
    ids: Tensor  # int64 [N], ascending

    def __init__(
        self,
        shapes: Shapes,
        *,
        width: int = 128,
        negatives: int = 4096,
        temperature: float = 0.07,
        momentum: float = 0.5,
    ) -> None:
        super().__init__()
        samples = len(shapes.ids)
        if not 1 <= negatives < samples:
            raise UsageError(
                f"crd: negatives = {negatives}, and of the {samples} samples that the fit sees a sample has "
                f"{max(samples - 1, 0)} others: set negatives to at least 1 and at most that"
            )
        if width < 1 or not 0 < temperature < math.inf or not 0 <= momentum < 1:
            raise UsageError(
                f"crd: width = {width} must be 1 or more, temperature = {temperature} above 0 and finite, "
                f"momentum = {momentum} from 0 to below 1"
            )
        self.negatives, self.temperature, self.momentum = negatives, temperature, momentum
        self.heads = nn.ModuleList(nn.Linear(_width(shape), width) for shape in (*shapes.student, *shapes.teacher))
        self.register_buffer("bank", F.normalize(torch.randn(2, samples, width), dim=2))
        self.register_buffer("shift", torch.zeros(2))
        self.register_buffer("fixed", torch.zeros((), dtype=torch.bool))
        self.register_buffer("ids", torch.tensor(shapes.ids, dtype=torch.int64), persistent=False)  # the store's
        self._seen_fixed = False  # what was last read of `fixed`: reading it waits for the device
        self.register_load_state_dict_post_hook(_read_again)  # type: ignore[no-untyped-call]

    def forward(self, student: Tensor, teacher: Tensor, id: Tensor) -> Tensor:
        """The loss, float32, of features [B, *shape per sample] of any float dtype and their samples' ids int64 [B]."""
        position = self._positions(id, student, teacher)
        pair = [F.normalize(head(_vector(x)), dim=1) for head, x in zip(self.heads, (student, teacher), strict=True)]
        banks = self.bank[1], self.bank[0]  # each side is compared with the other
        others = [bank[position] for bank in banks] if self.training else [pair[1], pair[0]]
        positive = [(pair[side] * others[side]).sum(dim=1) / self.temperature for side in (0, 1)]
        counts = self._draw(position)
        shift = self._shift(pair, positive, counts)
        loss = student.new_zeros((), dtype=torch.float32)
        for side in (0, 1):
            near = row_mean(F.softplus(shift[side] - positive[side]))
            apart: Tensor = _Apart.apply(pair[side], banks[side], counts, shift[side], self.temperature)  # type: ignore[no-untyped-call]
            loss = loss + near + apart / max(len(position), 1)
        if self.training:
            self._remember(position, torch.stack([one.detach() for one in pair], dim=1))
        return loss

    def _positions(self, id: Tensor, student: Tensor, teacher: Tensor) -> Tensor:
        """Of the batch's samples among all ids: int64 [B]."""
        if not len(student) == len(teacher) == len(id):
            raise UsageError(
                f"crd: {len(student)} rows of the student, {len(teacher)} of the teacher and {len(id)} ids: "
                "pass those of the same samples"
            )
        position = torch.searchsorted(self.ids, id).clamp(max=len(self.ids) - 1)
        # On an accelerator the check would wait for the device at every step; the loader's ids are the store's.
        if id.device.type == "cpu" and not bool((known := self.ids[position] == id).all()):
            raise UsageError(
                f"crd: sample {int(id[~known][0])} is none of the {len(self.ids)} that the loss was built for "
                f"(ids {int(self.ids[0])} to {int(self.ids[-1])}): build it with the ids of every sample that is read"
            )
        return position

    def _draw(self, position: Tensor) -> Tensor:
        """How often each sample is a negative of each row: float32 [B, N].

        Counts instead of the K indices: one product with the bank then serves all rows, and the sum over negatives has
        the same order, and so the same bits, on every run.
        """
        samples = len(self.ids)
        drawn = torch.randint(samples - 1, (len(position), self.negatives), device=position.device)
        drawn += drawn >= position[:, None]  # every sample but the row's own
        counts = torch.zeros(len(position), samples, device=position.device)
        return counts.scatter_add_(1, drawn, counts.new_ones(()).expand_as(drawn))

    @torch.no_grad()
    def _shift(self, pair: list[Tensor], positive: list[Tensor], counts: Tensor) -> Tensor:
        """b for each side, from this batch unless an earlier one has set it."""
        self._seen_fixed = self._seen_fixed or bool(self.fixed)
        if self._seen_fixed:
            return self.shift
        sums = []
        for anchor, near, bank in zip(pair, positive, (self.bank[1], self.bank[0]), strict=True):
            far = anchor @ bank.T / self.temperature + counts.log()
            sums.append(torch.logaddexp(far.logsumexp(dim=1), near))
        rows = torch.stack(sums, dim=1)
        if self.training:
            rows = global_batch(rows)
        if len(rows) == 0:
            return self.shift
        shift: Tensor = rows.logsumexp(dim=0) + math.log(self.negatives / (len(rows) * (1 + self.negatives)))
        if self.training:
            self.shift.copy_(shift)
            self.fixed.fill_(True)
        return shift

    @torch.no_grad()
    def _remember(self, position: Tensor, pair: Tensor) -> None:
        """Move the banks' rows of the global batch's samples towards their embeddings [B, 2, width]."""
        position, pair = global_batch(position), global_batch(pair)
        rows = torch.arange(len(position), device=position.device)
        last = torch.zeros_like(self.ids).scatter_reduce_(0, position, rows, "amax")[position]  # of a sample's rows
        moved = self.momentum * self.bank[:, position] + (1 - self.momentum) * pair[last].transpose(0, 1)
        self.bank[:, position] = F.normalize(moved, dim=2)


class _Apart(torch.autograd.Function):
    """The sum over rows and negatives of -log(1 - h), whose gradient is made on the way forward: the bank changes
    before the backward pass, and no tensor of B x N need wait for it."""

    @staticmethod
    def forward(ctx: Any, anchor: Tensor, bank: Tensor, counts: Tensor, shift: Tensor, temperature: float) -> Tensor:
        scores = (anchor @ bank.T).div_(temperature).sub_(shift)
        value: Tensor = torch.linalg.vecdot(F.softplus(scores), counts).sum()
        if ctx.needs_input_grad[0]:
            ctx.save_for_backward(scores.sigmoid_().mul_(counts) @ bank / temperature)
        return value

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None, None]:
        (slope,) = ctx.saved_tensors
        return gradient * slope, None, None, None, None


def _read_again(module: nn.Module, keys: object) -> None:
    """Another state was loaded, in which the first batch may be still to come."""
    assert isinstance(module, CRD)
    module._seen_fixed = False


def _width(shape: tuple[int, ...]) -> int:
    if len(shape) not in (1, 2, 3) or min(shape) < 1:
        raise UsageError(
            f"crd: a feature has shape {list(shape)}; it takes vectors [D], states [L, D] and maps [D, H, W]: "
            "choose another tap"
        )
    return shape[-1] if len(shape) == 2 else shape[0]


def _vector(feature: Tensor) -> Tensor:
    """[B, D] of a vector [B, D], a map [B, D, H, W] or states [B, L, D]."""
    feature = feature.float()
    return feature if feature.ndim == 2 else feature.mean(dim=1 if feature.ndim == 3 else (2, 3))
