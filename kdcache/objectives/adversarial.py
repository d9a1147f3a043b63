"""Adversarial distillation: a discriminator tells the teacher's outputs from the student's, which learns to fool it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Literal, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdcache.codecs import QuantisedLogits, SampledLogits, SparseLogits, Targets
from kdcache.errors import UsageError
from kdcache.objectives.adapters import Adapter
from kdcache.objectives.discriminators import Discriminator
from kdcache.objectives.matching import check_rows, check_temperature, row_mean
from kdcache.objectives.meeting import check_met, meeting
from kdcache.objectives.shapes import Contest, Shapes

__all__ = ["Adversarial", "AdversarialFeature", "Form", "Game"]

Form: TypeAlias = Literal["non_saturating", "least_squares", "hinge"]


class Game(nn.Module):
    """The two losses of a discriminator D, mean over rows each; t is the teacher's sample, s the student's.

    | form | student's | opponent's |
    |---|---|---|
    | non_saturating | softplus(-D(s)) | softplus(-D(t)) + softplus(D(s)) |
    | least_squares | (D(s) - 1)^2 / 2 | (D(t) - 1)^2 / 2 + D(s)^2 / 2 |
    | hinge | -D(s) | max(0, 1 - D(t)) + max(0, 1 + D(s)) |

    Goodfellow et al. 2014, eq. 1 and section 3 (the student maximises log D); Mao et al. 2017, eq. 9; Miyato et al.
    2018, eqs. 16 and 17. `gradient_penalty` = g adds g/2 |dD(t)/dt|^2 to the opponent's loss (R1: Mescheder et al.
    2018, eq. 9), in training only: evaluation has no gradients. `lr` is what the opponent's optimiser begins with.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        form: Form,
        hidden: int,
        spectral_norm: bool,
        gradient_penalty: float,
        lr: float,
        classes: int = 0,
    ) -> None:
        super().__init__()
        if form not in _FORMS:
            raise UsageError(f"adversarial: form = {form!r}: take one of {', '.join(_FORMS)}")
        if not 0 <= gradient_penalty < math.inf or not 0 < lr < math.inf:
            raise UsageError(
                f"adversarial: gradient_penalty = {gradient_penalty} must be 0 or more, and lr = {lr} above 0; "
                "both finite"
            )
        self.form, self.gradient_penalty, self.lr = form, gradient_penalty, lr
        self.discriminator = Discriminator(shape, hidden, spectral_norm, classes)

    def opponent_parameters(self) -> Iterator[nn.Parameter]:
        """The discriminator's, for an optimiser of their own; all others go with the student."""
        return self.discriminator.parameters()

    def contest(self, student: Tensor, teacher: Tensor, condition: Tensor | None = None) -> Contest:
        """Both losses for float32 samples [B, *shape]. Each has gradients for its own side alone.

        One backward pass of their sum serves both sides.
        """
        weights = self.discriminator.weights()
        frozen = [(weight.detach(), None if bias is None else bias.detach()) for weight, bias in weights]
        penalised = self.gradient_penalty > 0 and self.training and torch.is_grad_enabled()
        teacher = teacher.detach().requires_grad_(penalised)
        real = self.discriminator(teacher, condition, weights)
        fake = self.discriminator(student.detach(), condition, weights)
        fool, tell = _FORMS[self.form]
        opponent = row_mean(tell(real, fake))
        if penalised:
            (slope,) = torch.autograd.grad(real.sum(), teacher, create_graph=True)
            opponent = opponent + self.gradient_penalty / 2 * row_mean(slope.square())
        return Contest(row_mean(fool(self.discriminator(student, condition, frozen))), opponent)


class Adversarial(Game):
    """On outputs: D reads logits / T less their mean over classes, [B, C]. A `Contest`; forms as in `Game`.

    Xu et al. 2018 let the discriminator see logits, on which no softmax saturates; less their mean they hold what the
    probabilities at T hold, and nothing else. `conditional` tells D the teacher's answer for the row as well, argmax of
    its logits, so that the student must give such outputs as the teacher has for the same answer. Without, D compares
    the two crowds, which a student fools that gives the teacher's outputs to the wrong samples. `hidden` units in
    each of D's two hidden layers, the rest as in `Discriminator` and `Game`.

    `SparseLogits` and `SampledLogits` are refused: their missing classes would give the teacher away.
    """

    def __init__(
        self,
        shapes: Shapes,
        *,
        form: Form = "non_saturating",
        temperature: float = 1.0,
        conditional: bool = True,
        hidden: int = 128,
        spectral_norm: bool = True,
        gradient_penalty: float = 0.0,
        lr: float = 1e-3,
    ) -> None:
        check_temperature(temperature)
        classes = shapes.classes
        super().__init__((classes,), form, hidden, spectral_norm, gradient_penalty, lr, classes if conditional else 0)
        self.temperature, self.conditional = temperature, conditional

    def forward(self, student: Tensor, targets: Targets) -> Contest:
        """The student's logits [B, C] of any float dtype against the stored ones."""
        if isinstance(targets, SparseLogits | SampledLogits):
            raise UsageError(
                "adversarial: the discriminator reads every class, and these targets lack most: it would tell the "
                'teacher by what is missing; dump the field with codec = "dense", "quant" or "lowrank"'
            )
        check_rows(student, targets)
        teacher = targets.dense() if isinstance(targets, QuantisedLogits) else targets
        answer = F.one_hot(teacher.argmax(dim=1), teacher.shape[1]).float() if self.conditional else None
        return self.contest(self._seen(student), self._seen(teacher), answer)

    def _seen(self, logits: Tensor) -> Tensor:
        softened = logits.float() / self.temperature
        return softened - softened.mean(dim=1, keepdim=True)


class AdversarialFeature(Game):
    """On features: D reads the teacher's vector [D], map [D, H, W] or every token of [L, D], and what an `Adapter`,
    trained with the student, makes of the student's; the larger map is pooled to the smaller.

    As MEAL (Shen et al. 2019) has it for the outputs of several layers. A `Contest`: mean over rows, or
    tokens; forms as in `Game`, networks as in `Discriminator`. Nothing ties a row to its own teacher's: it matches
    distributions, and goes beside a loss such as `kd` or `ce`.
    """

    def __init__(
        self,
        shapes: Shapes,
        *,
        form: Form = "non_saturating",
        hidden: int = 128,
        spectral_norm: bool = True,
        gradient_penalty: float = 0.0,
        lr: float = 1e-3,
    ) -> None:
        (ours,), (theirs,) = shapes.student, shapes.teacher
        met, adapter = meeting(ours, theirs), Adapter(ours, theirs)
        super().__init__((met.widths[1], *met.space), form, hidden, spectral_norm, gradient_penalty, lr)
        self.adapter = adapter
        self._meeting = met

    def forward(self, student: Tensor, teacher: Tensor) -> Contest:
        """Features [B, *shape per sample], or tokens as rows [N, D], of any float dtype."""
        ours, theirs = self.adapter(student), self._meeting.bring(teacher)
        check_met("adversarial_feature", ours, theirs)
        if self._meeting.kind == "tokens":
            ours, theirs = ours.flatten(0, -2), theirs.flatten(0, -2)
        return self.contest(ours, theirs)


def _non_saturating(fake: Tensor) -> Tensor:
    return F.softplus(-fake)


def _cross_entropy(real: Tensor, fake: Tensor) -> Tensor:
    return F.softplus(-real) + F.softplus(fake)


def _near_one(fake: Tensor) -> Tensor:
    return (fake - 1).square() / 2


def _one_and_zero(real: Tensor, fake: Tensor) -> Tensor:
    return ((real - 1).square() + fake.square()) / 2


def _raised(fake: Tensor) -> Tensor:
    return -fake


def _margins(real: Tensor, fake: Tensor) -> Tensor:
    return F.relu(1 - real) + F.relu(1 + fake)


# What the student makes small of D(s), and what the opponent does of D(t) and D(s).
_FORMS = {
    "non_saturating": (_non_saturating, _cross_entropy),
    "least_squares": (_near_one, _one_and_zero),
    "hinge": (_raised, _margins),
}
