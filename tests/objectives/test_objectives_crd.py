"""`CRD`: values by hand, what its banks remember, its exact resume, and what it teaches on real digits."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing
import torch.nn.functional as F
from torch import Tensor, nn

from kdcache.errors import UsageError
from kdcache.objectives.crd import CRD
from kdcache.objectives.shapes import Shapes
from kdcache.sources.digits import open_digits


@pytest.fixture(autouse=True)
def seeded() -> Iterator[None]:
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        yield


def shapes(ids: list[int] | np.ndarray, student: tuple[int, ...] = (2,), teacher: tuple[int, ...] = (2,)) -> Shapes:
    return Shapes((student,), (teacher,), np.asarray(ids, dtype=np.int64), 10)


def plain(ids: list[int], negatives: int, momentum: float = 0.5, shift: tuple[float, float] | None = None) -> CRD:
    """Embeddings in the plane that are the features themselves; temperature 1."""
    module = CRD(shapes(ids), width=2, negatives=negatives, temperature=1.0, momentum=momentum)
    for head in module.heads:
        assert isinstance(head, nn.Linear)
        nn.init.eye_(head.weight)
        nn.init.zeros_(head.bias)
    if shift is not None:
        module.shift.copy_(torch.tensor(shift))
        module.fixed.fill_(True)
    return module


def softplus(x: float) -> float:
    return math.log1p(math.exp(x))


X, Y = [1.0, 0.0], [0.0, 1.0]


class TestByHand:
    def test_one_other_sample_is_the_only_negative(self) -> None:
        module = plain([5, 9], 1, shift=(0.25, -0.5))
        # Student's bank: 5 along x, 9 along -y. Teacher's: 5 along 3x + 4y, 9 along -x.
        module.bank.copy_(torch.tensor([[X, [0.0, -1.0]], [[0.6, 0.8], [-1.0, 0.0]]]))
        # The student's embedding of sample 9 is y; the teacher's x, whatever their lengths.
        loss = module(torch.tensor([[0.0, 7.0]]), torch.tensor([[0.5, 0.0]]), torch.tensor([9]))
        student = softplus(0.25 - 0.0) + softplus(0.8 - 0.25)
        teacher = softplus(-0.5 - 0.0) + softplus(1.0 + 0.5)
        assert loss.item() == pytest.approx(student + teacher, rel=1e-6)

    def test_evaluation_pairs_the_two_embeddings_of_now(self) -> None:
        module = plain([5, 9], 1, shift=(0.25, -0.5)).eval()
        module.bank.copy_(torch.tensor([[X, [0.0, -1.0]], [[0.6, 0.8], [-1.0, 0.0]]]))
        before = {name: value.clone() for name, value in module.state_dict().items()}
        with torch.no_grad():
            loss = module(torch.tensor([[0.6, 0.8]]), torch.tensor([X]), torch.tensor([9]))
        student = softplus(0.25 - 0.6) + softplus(0.36 + 0.64 - 0.25)
        teacher = softplus(-0.5 - 0.6) + softplus(1.0 + 0.5)
        assert loss.item() == pytest.approx(student + teacher, rel=1e-6)
        assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())

    def test_the_first_batch_fixes_z_for_good(self) -> None:
        module = plain([5, 9], 1)
        module.bank.copy_(torch.tensor([[X, [0.0, -1.0]], [[0.6, 0.8], [-1.0, 0.0]]]))
        batch = torch.tensor([[0.0, 7.0]]), torch.tensor([[0.5, 0.0]]), torch.tensor([9])
        module.eval()(*batch)
        assert not module.fixed
        module.train()(*batch)
        # b = log(K Z / N) = log(K mean(exp)): over the positive and the one negative of each side.
        expected = [math.log((math.exp(0.0) + math.exp(0.8)) / 2), math.log((math.exp(0.0) + math.exp(1.0)) / 2)]
        torch.testing.assert_close(module.shift, torch.tensor(expected))
        assert module.fixed
        module(torch.tensor([X]), torch.tensor([X]), torch.tensor([5]))
        torch.testing.assert_close(module.shift, torch.tensor(expected))

    def test_another_first_batch_after_loading_a_fresh_state(self) -> None:
        module = plain([5, 9], 1)
        fresh = {name: value.clone() for name, value in module.state_dict().items()}
        first = module(torch.tensor([X]), torch.tensor([Y]), torch.tensor([5]))
        module(torch.tensor([Y]), torch.tensor([Y]), torch.tensor([9]))
        module.load_state_dict(fresh)
        assert module(torch.tensor([X]), torch.tensor([Y]), torch.tensor([5])).item() == first.item()


class TestBanks:
    def test_a_row_moves_towards_the_embedding_and_stays_a_unit_vector(self) -> None:
        module = plain([5, 7, 9], 2, momentum=0.75)
        before = module.bank.clone()
        module.bank[:, 1] = torch.tensor([X, Y])
        module(torch.tensor([[0.0, 3.0]]), torch.tensor([[0.0, -2.0]]), torch.tensor([7]))
        ours = torch.tensor([0.75, 0.25]) / math.hypot(0.75, 0.25)
        torch.testing.assert_close(module.bank[0, 1], ours)
        torch.testing.assert_close(module.bank[1, 1], torch.tensor(Y))
        assert torch.equal(module.bank[:, ::2], before[:, ::2])

    def test_of_a_sample_twice_in_a_batch_the_last_is_remembered(self) -> None:
        module = plain([5, 7, 9], 2, momentum=0.0)
        student = torch.tensor([X, Y, [-1.0, 0.0], [0.0, -1.0]])
        module(student, student, torch.tensor([9, 7, 9, 9]))
        torch.testing.assert_close(module.bank[0, 1:], torch.tensor([Y, [0.0, -1.0]]))

    def test_they_begin_as_unit_vectors_in_all_directions(self) -> None:
        bank = CRD(shapes(np.arange(4000)), width=8, negatives=10).bank
        torch.testing.assert_close(bank.norm(dim=2), torch.ones(2, 4000))
        assert bank.mean(dim=1).abs().max() < 0.03  # standard error 1 / sqrt(8 x 4000) = 0.0056

    def test_no_negative_is_the_sample_itself_and_all_others_are_as_likely(self) -> None:
        module = CRD(shapes(np.arange(8)), width=2, negatives=7)
        position = torch.arange(8).repeat(2000)
        counts = module._draw(position).reshape(2000, 8, 8)
        assert torch.equal(counts.sum(dim=2), torch.full((2000, 8), 7.0))
        mean = counts.mean(dim=0)
        assert torch.equal(mean.diagonal(), torch.zeros(8))
        off = mean[~torch.eye(8, dtype=torch.bool)]
        assert (off - 1).abs().max() < 5 * math.sqrt(7 * (1 / 7) * (6 / 7) / 2000)


class TestGradients:
    def test_both_heads_and_the_student_learn_and_the_bank_does_not(self) -> None:
        module = CRD(shapes(np.arange(20), (3,), (5, 2, 2)), width=4, negatives=8)
        student = torch.randn(6, 3, requires_grad=True)
        module(student, torch.randn(6, 5, 2, 2), torch.arange(6)).backward()
        assert student.grad is not None
        assert student.grad.any()
        assert all(parameter.grad is not None and parameter.grad.any() for parameter in module.parameters())
        assert not module.bank.requires_grad

    def test_the_length_of_a_feature_does_not_matter(self) -> None:
        module = plain([1, 2, 3], 2, shift=(0.0, 0.0)).eval()
        student, teacher, id = torch.randn(3, 2), torch.randn(3, 2), torch.tensor([3, 1, 2])
        values = []
        for scale in (1.0, 100.0):
            torch.manual_seed(1)
            values.append(module(scale * student, teacher / scale, id).item())
        assert values[1] == pytest.approx(values[0], rel=1e-5)

    def test_it_stays_finite_at_a_temperature_where_exp_does_not(self) -> None:
        module = CRD(shapes(np.arange(20)), width=4, negatives=8, temperature=0.002)
        student = torch.randn(6, 2, requires_grad=True)
        for _ in range(2):
            loss = module(student, torch.randn(6, 2), torch.arange(6))
            (slope,) = torch.autograd.grad(loss, student)
            assert loss.isfinite()
            assert slope.isfinite().all()


class Fit:
    """A student, the loss and one optimiser over both, on the digits: seeded per step, as a fit does."""

    def __init__(self, seed: int, images: Tensor) -> None:
        torch.manual_seed(seed)
        self.images = images
        self.ids = 10 + 2 * np.arange(len(images))
        self.student = nn.Linear(32, 24)
        self.crd = CRD(shapes(self.ids, (24,), (32,)), width=16, negatives=256)
        self.optimizer = torch.optim.Adam([*self.student.parameters(), *self.crd.parameters()], 3e-3)

    def steps(self, first: int, last: int) -> list[float]:
        losses = []
        for step in range(first, last):
            torch.manual_seed(1000 + step)
            rows = torch.randperm(len(self.images))[:64]
            left, right = self.halves(rows)
            loss = self.crd(self.student(left), right, torch.from_numpy(self.ids)[rows])
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            losses.append(loss.item())
        return losses

    def halves(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """The student sees the left half of a picture, and the teacher's feature is its right half."""
        images = self.images[rows]
        return images[:, :, :4].flatten(1), images[:, :, 4:].flatten(1)

    def found(self) -> float:
        """How often a student's embedding is nearest to its own teacher's, among 200 samples."""
        with torch.no_grad():
            left, right = self.halves(torch.arange(200))
            ours, theirs = self.crd.heads[0](self.student(left)), self.crd.heads[1](right)
            nearest = (F.normalize(ours, dim=1) @ F.normalize(theirs, dim=1).T).argmax(dim=1)
        return (nearest == torch.arange(200)).float().mean().item()


@pytest.fixture(scope="module")
def images() -> Tensor:
    train = open_digits("train")
    return torch.from_numpy(train.read(train.ids())["input"]).float() / 16


class TestFit:
    def test_a_sample_finds_its_own_teacher(self, images: Tensor) -> None:
        """By chance 1 of 200 does."""
        fit = Fit(0, images)
        assert fit.found() < 0.03
        losses = fit.steps(0, 600)
        assert sum(losses[-20:]) < 0.6 * sum(losses[:20])
        assert fit.found() > 0.1

    def test_resumed_it_is_the_uninterrupted_one_bit_for_bit(self, images: Tensor) -> None:
        whole = Fit(0, images)
        whole.steps(0, 3)
        kept = {name: value.clone() for name, value in whole.crd.state_dict().items()}
        student = {name: value.clone() for name, value in whole.student.state_dict().items()}
        optimizer = torch.optim.Adam(whole.optimizer.param_groups[0]["params"])
        optimizer.load_state_dict(whole.optimizer.state_dict())
        moments = {
            index: {k: v.clone() for k, v in state.items()} for index, state in optimizer.state_dict()["state"].items()
        }
        groups = whole.optimizer.state_dict()["param_groups"]
        rest = whole.steps(3, 8)

        resumed = Fit(99, images)
        resumed.crd.load_state_dict(kept)
        resumed.student.load_state_dict(student)
        resumed.optimizer.load_state_dict({"state": moments, "param_groups": groups})
        assert resumed.steps(3, 8) == rest
        for name, value in resumed.crd.state_dict().items():
            assert torch.equal(value, whole.crd.state_dict()[name]), name

    def test_the_state_is_what_the_checkpoint_can_hold(self, images: Tensor) -> None:
        state = Fit(0, images).crd.state_dict()
        assert set(state) == {
            "bank",
            "shift",
            "fixed",
            *(f"heads.{n}.{kind}" for n in (0, 1) for kind in ("weight", "bias")),
        }
        assert all(value.isfinite().all() for value in state.values())


def one_of_two(rank: int, folder: str) -> None:
    """A process that sees every second row of the same two batches; the second has an odd number of rows."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    try:
        module, batches = of_two()
        torch.manual_seed(rank)  # draws other negatives
        for student, teacher, id in batches:
            module(student[rank::2], teacher[rank::2], id[rank::2])
        torch.save(module.state_dict(), f"{folder}/{rank}.pt")
    finally:
        dist.destroy_process_group()


def of_two() -> tuple[CRD, list[tuple[Tensor, Tensor, Tensor]]]:
    torch.manual_seed(5)
    module = CRD(shapes(np.arange(30), (3,), (4,)), width=6, negatives=10)
    return module, [(torch.randn(n, 3), torch.randn(n, 4), torch.randperm(30)[:n]) for n in (8, 7)]


def test_two_processes_keep_the_same_banks(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(one_of_two, (str(tmp_path),), nprocs=2)  # type: ignore[attr-defined,no-untyped-call]
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    assert first["fixed"]
    for name, value in first.items():
        assert torch.equal(value, second[name]), name
    alone, batches = of_two()
    for batch in batches:
        alone(*batch)
    torch.testing.assert_close(first["bank"], alone.bank)


class TestErrors:
    @pytest.mark.parametrize("negatives", [0, 3, 4096])
    def test_more_negatives_than_other_samples(self, negatives: int) -> None:
        with pytest.raises(UsageError, match=rf"negatives = {negatives}.* 3 samples .* 2 others"):
            CRD(shapes([1, 2, 3]), negatives=negatives)

    def test_a_sample_that_the_fit_was_not_to_see(self) -> None:
        module = plain([5, 7, 9], 2)
        for id in (4, 6, 10):
            with pytest.raises(UsageError, match=rf"sample {id} is none of the 3 .* \(ids 5 to 9\)"):
                module(torch.randn(2, 2), torch.randn(2, 2), torch.tensor([7, id]))

    def test_rows_that_are_not_of_the_same_samples(self) -> None:
        with pytest.raises(UsageError, match="2 rows of the student, 3 of the teacher and 2 ids"):
            plain([5, 7, 9], 2)(torch.randn(2, 2), torch.randn(3, 2), torch.tensor([5, 7]))

    @pytest.mark.parametrize("shape", [(), (2, 3, 4, 5), (0,)])
    def test_a_feature_of_another_rank(self, shape: tuple[int, ...]) -> None:
        with pytest.raises(UsageError, match=r"vectors \[D\], states \[L, D\] and maps"):
            CRD(shapes([1, 2, 3], shape), negatives=1)

    @pytest.mark.parametrize(
        "options",
        [{"width": 0}, {"temperature": 0.0}, {"temperature": math.inf}, {"momentum": 1.0}],
    )
    def test_options_out_of_range(self, options: dict[str, object]) -> None:
        with pytest.raises(UsageError, match=f"{next(iter(options))} = "):
            CRD(shapes([1, 2, 3]), negatives=1, **options)  # type: ignore[arg-type]
