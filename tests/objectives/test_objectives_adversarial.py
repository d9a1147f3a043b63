"""`Adversarial` and `AdversarialFeature`: values by hand, whose gradients, exact resume, and a fit on digits."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from cases_adversarial import verdict
from torch import Tensor, nn

from kdcache.codecs import QuantisedLogits, SparseLogits
from kdcache.errors import UsageError
from kdcache.objectives.adversarial import Adversarial, AdversarialFeature, Form, Game
from kdcache.objectives.discriminators import Discriminator
from kdcache.objectives.shapes import Contest, Shapes
from kdcache.sources.digits import open_digits

FORMS: list[Form] = ["non_saturating", "least_squares", "hinge"]
forms = pytest.mark.parametrize("form", FORMS)


@pytest.fixture(autouse=True)
def seeded() -> Iterator[None]:
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        yield


def on_logits(classes: int = 7, **options: Any) -> Adversarial:
    shape = ((classes,),)
    return Adversarial(Shapes(shape, shape, np.arange(4), classes), **{"hidden": 5, **options})


def on_features(ours: tuple[int, ...], theirs: tuple[int, ...], **options: Any) -> AdversarialFeature:
    return AdversarialFeature(Shapes((ours,), (theirs,), np.arange(4), 7), **{"hidden": 5, **options})


def two_classes(**options: Any) -> Adversarial:
    """D = 2 a for logits (c + a, c - a) with a > 0, and 0.08 a with a < 0."""
    module = on_logits(2, hidden=1, spectral_norm=False, **{"conditional": False, **options})
    first, second, last, *_ = module.discriminator.layers
    with torch.no_grad():
        for layer, weight in ((first, [[1.0, -1.0]]), (second, [[1.0]]), (last, [[1.0]])):
            assert isinstance(layer, nn.Linear)
            layer.weight.copy_(torch.tensor(weight))
            layer.bias.zero_()
    return module


def softplus(x: float) -> float:
    return math.log1p(math.exp(x))


class TestByHand:
    TEACHER, STUDENT = torch.tensor([[3.0, 1.0], [7.0, 4.0]]), torch.tensor([[0.5, 0.0], [1.0, 6.0]])
    REAL, FAKE = (2.0, 3.0), (0.5, -0.2)  # D of them: a is 1 and 1.5, 0.25 and -2.5

    def test_non_saturating(self) -> None:
        contest = two_classes()(self.STUDENT, self.TEACHER)
        student = sum(softplus(-d) for d in self.FAKE) / 2
        opponent = (sum(softplus(-d) for d in self.REAL) + sum(softplus(d) for d in self.FAKE)) / 2
        assert contest.student.item() == pytest.approx(student)
        assert contest.opponent.item() == pytest.approx(opponent)

    def test_least_squares(self) -> None:
        contest = two_classes(form="least_squares")(self.STUDENT, self.TEACHER)
        assert contest.student.item() == pytest.approx((0.5**2 + 1.2**2) / 2 / 2)
        assert contest.opponent.item() == pytest.approx((1 + 4 + 0.25 + 0.04) / 2 / 2)

    def test_hinge(self) -> None:
        contest = two_classes(form="hinge")(self.STUDENT, self.TEACHER)
        assert contest.student.item() == pytest.approx(-(0.5 - 0.2) / 2)
        assert contest.opponent.item() == pytest.approx((0 + 0 + 1.5 + 0.8) / 2)

    def test_the_penalty_is_on_the_teachers_side(self) -> None:
        """dD/dt = (1, -1) by centred logits where a > 0: its square is 2, half of gamma = 3 of it 3."""
        with_penalty = two_classes(form="hinge", gradient_penalty=3.0)
        assert with_penalty(self.STUDENT, self.TEACHER).opponent.item() == pytest.approx(1.15 + 3)
        assert with_penalty(self.STUDENT, self.TEACHER).student.item() == pytest.approx(-0.15)

    def test_the_condition_adds_its_projection(self) -> None:
        """Where the teacher answers 0, D is 2 a (1 + 10) and its double, w = 1 and the column 10; a < 0 alike."""
        module = two_classes(form="hinge", conditional=True)
        with torch.no_grad():
            list(module.parameters())[-1].copy_(torch.tensor([[10.0, 100.0]]))
        contest = module(self.STUDENT, self.TEACHER)
        assert contest.student.item() == pytest.approx(-(0.5 - 0.2) * 11 / 2)
        contest = module(self.STUDENT, self.TEACHER.flip(1))
        assert contest.student.item() == pytest.approx(-(0.5 - 0.2) * 101 / 2)


class TestAgainstFloat64:
    """The opponent's loss and its gradient by D's parameters; the student's are in the conformance class."""

    @staticmethod
    def exact(form: Form, real: Tensor, fake: Tensor) -> Tensor:
        one = torch.ones((), dtype=torch.float64)
        match form:
            case "non_saturating":
                return -(1 / (1 + torch.exp(-real))).log() - (1 - 1 / (1 + torch.exp(-fake))).log()
            case "least_squares":
                return (real - 1) ** 2 / 2 + fake**2 / 2
            case "hinge":
                return torch.maximum(0 * one, 1 - real) + torch.maximum(0 * one, 1 + fake)

    @forms
    @pytest.mark.parametrize("penalty", [0.0, 2.0])
    def test_maps(self, form: Form, penalty: float) -> None:
        module = on_features((3, 3, 4), (4, 6, 4), form=form, spectral_norm=False, gradient_penalty=penalty)
        student, teacher = torch.randn(6, 3, 3, 4), 2 * torch.randn(6, 4, 6, 4)
        found = module(student, teacher).opponent
        slopes = torch.autograd.grad(found, list(module.opponent_parameters()))

        flat = [p.detach().double().requires_grad_() for p in module.opponent_parameters()]
        layers = list(zip(flat[::2], flat[1::2], strict=True))
        adapted = module.adapter(student).detach().double()
        pooled = teacher.double().reshape(6, 4, 3, 2, 4).mean(dim=3).requires_grad_()
        total = torch.zeros((), dtype=torch.float64)
        for real, fake in zip(pooled, adapted, strict=True):
            d = verdict(real, layers)
            total = total + self.exact(form, d, verdict(fake, layers)) / 6
            if penalty:
                (slope,) = torch.autograd.grad(d, pooled, create_graph=True)
                total = total + penalty / 2 * (slope**2).sum() / 6
        assert found.item() == pytest.approx(total.item(), rel=1e-5)
        for slope, wanted in zip(slopes, torch.autograd.grad(total, flat), strict=True):
            torch.testing.assert_close(slope.double(), wanted, rtol=1e-4, atol=1e-6)

    @forms
    def test_conditional_logits(self, form: Form) -> None:
        module = on_logits(form=form, spectral_norm=False, temperature=2.0)
        student, teacher = torch.randn(6, 7), 3 * torch.randn(6, 7)
        found = module(student, teacher).opponent
        slopes = torch.autograd.grad(found, list(module.opponent_parameters()))

        flat = [p.detach().double().requires_grad_() for p in module.opponent_parameters()]
        total = torch.zeros((), dtype=torch.float64)
        for ours, theirs in zip(student.double(), teacher.double(), strict=True):
            layers = [(flat[0], flat[1]), (flat[2], flat[3]), (flat[4] + flat[6][:, int(theirs.argmax())], flat[5])]
            real, fake = (verdict((row - row.sum() / 7) / 2, layers) for row in (theirs, ours))
            total = total + self.exact(form, real, fake) / 6
        assert found.item() == pytest.approx(total.item(), rel=1e-5)
        for slope, wanted in zip(slopes, torch.autograd.grad(total, flat), strict=True):
            torch.testing.assert_close(slope.double(), wanted, rtol=1e-4, atol=1e-6)


class TestWhoseGradients:
    @staticmethod
    def sides(module: Game) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
        """The opponent's parameters and the others."""
        opponent = list(module.opponent_parameters())
        known = {id(parameter) for parameter in opponent}
        return opponent, [parameter for parameter in module.parameters() if id(parameter) not in known]

    @forms
    @pytest.mark.parametrize("shape", [(3,), (3, 4, 4)])
    @pytest.mark.parametrize("penalty", [0.0, 1.0])
    def test_each_loss_has_its_own_sides(self, form: Form, shape: tuple[int, ...], penalty: float) -> None:
        module = on_features(shape, (6, 5, 5), form=form, gradient_penalty=penalty)
        opponent, others = self.sides(module)
        assert {id(p) for p in others} == {id(p) for p in module.adapter.parameters()}
        student, teacher = torch.randn(4, *shape, requires_grad=True), torch.randn(4, 6, 5, 5)
        contest: Contest = module(student, teacher)
        mine = torch.autograd.grad(contest.student, [student, *others, *opponent], retain_graph=True, allow_unused=True)
        assert all(slope is not None and slope.any() for slope in mine[: 1 + len(others)])
        assert all(slope is None for slope in mine[1 + len(others) :])
        theirs = torch.autograd.grad(
            contest.opponent, [*opponent, student, *others], retain_graph=True, allow_unused=True
        )
        assert (
            sum(slope is not None and bool(slope.any()) for slope in theirs) >= len(opponent) - 1
        )  # hinge: no last bias
        assert all(slope is None for slope in theirs[len(opponent) :])
        # One backward pass of the sum gives both.
        (contest.student + contest.opponent).backward()  # type: ignore[no-untyped-call]
        for tensor, slope in zip((student, *others, *opponent), (*mine[: 1 + len(others)], *theirs), strict=False):
            assert tensor.grad is not None
            torch.testing.assert_close(tensor.grad, slope)

    def test_of_logits_every_parameter_is_the_opponents(self) -> None:
        opponent, others = self.sides(on_logits())
        assert len(opponent) == 7
        assert others == []


class TestInvariances:
    def test_a_constant_added_to_a_row_is_not_seen(self) -> None:
        module = on_logits(spectral_norm=False)
        student, teacher = torch.randn(5, 7), torch.randn(5, 7)
        first = module(student, teacher)
        second = module(student + 30 * torch.randn(5, 1), teacher + 30 * torch.randn(5, 1))
        torch.testing.assert_close(tuple(first), tuple(second), rtol=1e-4, atol=1e-5)

    def test_a_temperature_divides_the_logits_of_both(self) -> None:
        student, teacher = torch.randn(5, 7), torch.randn(5, 7)
        torch.manual_seed(1)
        cold = on_logits(spectral_norm=False)(student / 4, teacher / 4)
        torch.manual_seed(1)
        torch.testing.assert_close(
            tuple(on_logits(spectral_norm=False, temperature=4.0)(student, teacher)), tuple(cold)
        )

    def test_quantised_logits_are_the_dense_ones(self) -> None:
        codes = torch.randint(256, (5, 7), dtype=torch.uint8)
        targets = QuantisedLogits(codes, torch.full((5, 1), 0.05), torch.full((5, 1), -6.0))
        module, student = on_logits(spectral_norm=False), torch.randn(5, 7)
        torch.testing.assert_close(tuple(module(student, targets)), tuple(module(student, targets.dense())))

    def test_tokens_are_rows(self) -> None:
        module = on_features((4, 3), (4, 6), spectral_norm=False)
        student, teacher = torch.randn(5, 4, 3), torch.randn(5, 4, 6)
        torch.testing.assert_close(
            tuple(module(student, teacher)), tuple(module(student.flatten(0, 1), teacher.flatten(0, 1)))
        )


class TestSpectralNorm:
    def test_no_weight_stretches_a_vector(self) -> None:
        network = Discriminator((7,), 16, spectral_norm=True, classes=3)
        for _ in range(50):  # steps of the power iteration
            weights = network.weights()
        assert [round(torch.linalg.matrix_norm(weight, 2).item(), 3) for weight, _ in weights] == [1.0] * 4
        x, y = torch.randn(200, 7), torch.randn(200, 7)
        c = torch.zeros(200, 3)
        assert ((network(x, c) - network(y, c)).abs() <= 1.001 * (x - y).norm(dim=1)).all()

    def test_it_moves_once_a_step_in_training_and_never_in_evaluation(self) -> None:
        module = on_logits()
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.add_(torch.randn_like(parameter))  # so that u is off
        alone = Discriminator((7,), 5, spectral_norm=True, classes=7)
        alone.load_state_dict(module.discriminator.state_dict())
        module(torch.randn(3, 7), torch.randn(3, 7))
        alone.weights()
        for name, value in module.discriminator.state_dict().items():
            assert torch.equal(value, alone.state_dict()[name]), name
        module.eval()(torch.randn(3, 7), torch.randn(3, 7))
        for name, value in module.discriminator.state_dict().items():
            assert torch.equal(value, alone.state_dict()[name]), name


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_evaluation_leaves_the_penalty_out(mode: type) -> None:
    module = two_classes(form="hinge", gradient_penalty=3.0).eval()
    with mode():
        contest = module(TestByHand.STUDENT, TestByHand.TEACHER)
    assert contest.opponent.item() == pytest.approx(1.15)
    with mode():  # nor does training mode need gradients
        assert module.train()(TestByHand.STUDENT, TestByHand.TEACHER).opponent.item() == pytest.approx(1.15)


class Fit:
    """A student of the digits that has nothing but the discriminator to learn from, and an optimiser a side."""

    def __init__(self, seed: int, inputs: Tensor, teacher: Tensor, **options: Any) -> None:
        torch.manual_seed(seed)
        self.inputs, self.teacher = inputs, teacher
        self.student = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
        self.game = on_logits(10, hidden=64, **options)
        self.optimizers = [
            torch.optim.Adam(self.student.parameters(), 2e-3, betas=(0.5, 0.999)),
            torch.optim.Adam(self.game.opponent_parameters(), self.game.lr, betas=(0.5, 0.999)),
        ]

    def steps(self, first: int, last: int) -> list[float]:
        losses = []
        for step in range(first, last):
            torch.manual_seed(1000 + step)
            rows = torch.randint(len(self.inputs), (128,))
            contest = self.game(self.student(self.inputs[rows]), self.teacher[rows])
            for optimizer in self.optimizers:
                optimizer.zero_grad()
            (contest.student + contest.opponent).backward()  # type: ignore[no-untyped-call]
            for optimizer in self.optimizers:
                optimizer.step()
            losses += [contest.student.item(), contest.opponent.item()]
        return losses

    def parts(self) -> list[Any]:
        return [self.student, self.game, *self.optimizers]

    @torch.no_grad()
    def measured(self) -> tuple[float, float, float]:
        """D's accuracy, the energy distance of the two crowds of centred logits, and the answers that agree."""
        ours, theirs = (z - z.mean(dim=1, keepdim=True) for z in (self.student(self.inputs), self.teacher))
        answer = F.one_hot(theirs.argmax(dim=1), 10).float()
        network = self.game.discriminator.eval()
        right = (network(theirs, answer) > 0).float().mean() + (network(ours, answer) <= 0).float().mean()
        network.train()
        energy = (
            2 * torch.cdist(ours, theirs).mean() - torch.cdist(ours, ours).mean() - torch.cdist(theirs, theirs).mean()
        )
        agree = (ours.argmax(dim=1) == theirs.argmax(dim=1)).float().mean()
        return right.item() / 2, energy.item(), agree.item()


@pytest.fixture(scope="module")
def taught() -> tuple[Tensor, Tensor]:
    """Real digits, and the logits that a network trained on them gives."""
    train = open_digits("train")
    rows = train.read(train.ids())
    inputs = torch.from_numpy(rows["input"]).flatten(1).float() / 16 - 0.3
    label = torch.from_numpy(rows["label"])
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        teacher = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
        optimizer = torch.optim.Adam(teacher.parameters(), 1e-2)
        for _ in range(150):
            optimizer.zero_grad()
            F.cross_entropy(teacher(inputs), label).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    with torch.no_grad():
        logits = teacher(inputs)
    assert (logits.argmax(dim=1) == label).float().mean() > 0.99
    return inputs, logits


class TestFit:
    @pytest.mark.parametrize(
        "options",
        [
            {"form": "non_saturating"},
            {"form": "non_saturating", "spectral_norm": False, "gradient_penalty": 1.0},
        ],
    )
    def test_the_student_comes_to_pass_for_the_teacher(
        self, taught: tuple[Tensor, Tensor], options: dict[str, Any]
    ) -> None:
        """No label and no row-wise loss: the discriminator alone teaches it the teacher's answers."""
        fit = Fit(1, *taught, **options)
        _, far, chance = fit.measured()
        fit.steps(0, 100)
        early, _, _ = fit.measured()
        fit.steps(100, 900)
        late, near, agree = fit.measured()
        assert early > 0.95  # D tells a young student at sight
        assert late < 0.8
        assert near < far / 8
        assert chance < 0.3
        assert agree > 0.8

    def test_without_the_condition_it_fools_with_the_wrong_answers(self, taught: tuple[Tensor, Tensor]) -> None:
        """What `conditional` is for."""
        fit = Fit(1, *taught, conditional=False)
        _, far, _ = fit.measured()
        fit.steps(0, 900)
        _, near, agree = fit.measured()
        assert near < far / 2
        assert agree < 0.5

    def test_resumed_it_is_the_uninterrupted_one_bit_for_bit(self, taught: tuple[Tensor, Tensor]) -> None:
        whole = Fit(1, *taught, gradient_penalty=0.5)
        whole.steps(0, 4)
        kept = [copied(part.state_dict()) for part in whole.parts()]
        rest = whole.steps(4, 9)
        resumed = Fit(99, *taught, gradient_penalty=0.5)
        for part, state in zip(resumed.parts(), kept, strict=True):
            part.load_state_dict(state)
        assert resumed.steps(4, 9) == rest
        for name, value in resumed.game.state_dict().items():
            assert torch.equal(value, whole.game.state_dict()[name]), name


def copied(state: Any) -> Any:
    if isinstance(state, dict):
        return {key: copied(value) for key, value in state.items()}
    return state.clone() if isinstance(state, Tensor) else state


class TestErrors:
    def test_sparse_targets(self) -> None:
        targets = SparseLogits(
            torch.tensor([[1, 2]]),
            torch.log(torch.tensor([[0.5, 0.3]])),
            torch.zeros(1, 3),
            5,
        )
        with pytest.raises(UsageError, match="reads every class"):
            on_logits()(torch.randn(1, 7), targets)

    @pytest.mark.parametrize("shape", [(4, 7), (5, 6)])
    def test_targets_of_other_rows_or_classes(self, shape: tuple[int, int]) -> None:
        with pytest.raises(UsageError, match=r"targets|classes"):
            on_logits()(torch.randn(5, 7), torch.randn(shape))

    def test_features_of_other_rows(self) -> None:
        with pytest.raises(UsageError, match=r"adversarial_feature: .* same rows"):
            on_features((3,), (6,))(torch.randn(5, 3), torch.randn(4, 6))

    def test_a_feature_of_another_rank(self) -> None:
        with pytest.raises(UsageError, match="choose another tap"):
            on_features((3, 4, 5, 6), (6,))
        with pytest.raises(UsageError, match=r"given \[3, 4\]: choose another tap"):
            Discriminator((3, 4), 5, spectral_norm=False)

    @pytest.mark.parametrize(
        "options",
        [
            {"form": "wasserstein"},
            {"hidden": 0},
            {"gradient_penalty": -1.0},
            {"gradient_penalty": math.inf},
            {"lr": 0.0},
            {"temperature": 0.0},
        ],
    )
    def test_options_out_of_range(self, options: dict[str, Any]) -> None:
        with pytest.raises(UsageError, match=f"{next(iter(options))} = "):
            on_logits(**options)
