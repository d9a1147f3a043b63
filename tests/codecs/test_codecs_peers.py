"""The peers' codecs of the benchmark against what their authors publish, and against values by hand."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

from codec_measures import Judge, merged
from peers import Setting, View, draws_for, megatron, ml_dr, plain_topk, sampling, smoothed, tinyvit
from peers_distillkit import (
    BUDGET,
    RECOMMENDED,
    basis,
    decoded,
    distillkit,
    pack,
    read_arrow,
    read_lists,
    unpack,
)


def logits(rows: int, classes: int, spread: float = 3.0) -> Tensor:
    return torch.randn(rows, classes, generator=torch.Generator().manual_seed(0)) * spread


def log_ranks(rows: int, classes: int) -> Tensor:
    """Log-probabilities that fall with the log of the rank, as a language model's do, with noise of 0.1."""
    noise = torch.randn(rows, classes, generator=torch.Generator().manual_seed(1)) * 0.1
    order = torch.rand(rows, classes, generator=torch.Generator().manual_seed(2)).argsort(1)
    return (-1.2 * torch.arange(1, classes + 1).log() + noise).gather(1, order)


def kl(setting: Setting, z: Tensor, temperature: float = 1.0) -> float:
    view = setting.view(setting.encode(z, temperature), temperature, z.shape[1])
    return merged(iter([Judge(z, torch.zeros_like(z), temperature).sums(view)])).kl


@pytest.mark.parametrize(
    ("make", "size"),
    [
        (lambda c: distillkit(128, *RECOMMENDED, c), 328),
        (lambda c: distillkit(50, *BUDGET, c), 121),
        (lambda c: megatron(128), 528),
        (lambda c: sampling(50, 12, c), 36),
        (lambda c: tinyvit(100), 400),
        (lambda c: tinyvit(10), 40),
        (lambda c: plain_topk(64), 384),
    ],
)
def test_bytes_a_row_are_those_published(make, size: int) -> None:
    assert make(128_256).size == size


@pytest.mark.parametrize(
    ("classes", "recommended", "budget"), [(32_000, 296, 108), (65_536, 312, 114), (151_936, 344, 127)]
)
def test_distillkit_by_vocabulary(classes: int, recommended: int, budget: int) -> None:
    assert distillkit(128, *RECOMMENDED, classes).size == recommended
    assert distillkit(50, *BUDGET, classes).size == budget


@pytest.mark.parametrize(
    "setting", [tinyvit(5), plain_topk(5), megatron(20), smoothed(5, 1000), distillkit(40, *BUDGET, 1000), megatron(3)]
)
def test_the_file_has_the_bytes_described(setting: Setting, tmp_path: Path) -> None:
    setting.write(setting.encode(logits(1000, 1000), 1.0), tmp_path / "file")
    found = (tmp_path / "file").stat().st_size / 1000
    assert setting.size <= found < setting.size * 1.1 + 3  # Parquet has a footer and list lengths


def test_sampled_rows_take_three_bytes_a_distinct_class(tmp_path: Path) -> None:
    setting = sampling(50, 12, 1000)
    stored = setting.encode(logits(100, 1000), 1.0)
    setting.write(stored, tmp_path / "file")
    assert (tmp_path / "file").stat().st_size == 3 * int((stored["counts"] > 0).sum())
    assert (stored["counts"].sum(1) == 50).all()


def test_ml_dr_is_near_its_published_size(tmp_path: Path) -> None:
    """65 to 104 bytes a view with the augmentation's parameters, which are not written here."""
    setting = ml_dr(10)
    setting.write(setting.encode(logits(800, 1000), 1.0), tmp_path / "file")
    assert 40 < (tmp_path / "file").stat().st_size / 800 < 104


def test_distillkit_fits_ranks_as_published() -> None:
    """0.055 nats on a heavy-tailed synthetic check of ranks 17 to 128; here noise of 0.1 is what it cannot follow."""
    z = log_ranks(64, 2000)
    setting = distillkit(128, *RECOMMENDED, 2000)
    found, ids = decoded(setting.encode(z, 1.0), 128, 16, basis(112, RECOMMENDED[1]), 11)
    wanted, order = z.log_softmax(1).topk(128, 1)
    assert torch.equal(ids, order)
    assert torch.allclose(found[:, :16], wanted[:, :16], rtol=2**-8)
    assert 0.001 < float((found - wanted)[:, 16:].square().mean().sqrt()) < 0.055


@pytest.mark.parametrize(("bits", "k"), [(7, 50), (11, 3), (15, 128), (17, 128), (18, 50)])
def test_ids_of_any_width_come_back(bits: int, k: int) -> None:
    ids = torch.randint(1 << bits, (20, k), generator=torch.Generator().manual_seed(bits)).numpy()
    packed = pack(ids, bits)
    assert packed.shape == (20, -(-bits * k // 8))
    assert (unpack(packed, bits, k) == ids).all()


def test_ids_are_big_endian_by_hand() -> None:
    assert pack(torch.tensor([[0b101, 0b011, 0b110]]).numpy(), 3).tolist() == [[0b10101111, 0b00000000]]


def test_both_readers_give_what_was_written(tmp_path: Path) -> None:
    setting = distillkit(50, *BUDGET, 1000)
    stored = setting.encode(logits(1100, 1000), 1.0)  # two sequences and a short one
    setting.write(stored, tmp_path / "file")
    for read in (read_arrow, read_lists):
        found = read(tmp_path / "file")
        assert all(torch.equal(found[name], stored[name]) for name in stored)


def test_renormalised_topk_loses_the_log_of_its_mass() -> None:
    """KL(top-k renormalised ‖ full) = -log M, M the kept mass."""
    z = logits(200, 50).double()
    stored = plain_topk(8, "zero").encode(z, 1.0)
    view = plain_topk(8, "zero").view({**stored, "log_p": stored["log_p"].double()}, 1.0, 50)
    exact = z.log_softmax(1).gather(1, stored["ids"].long())
    kept = view.log_p.exp()
    found = (kept * (view.log_p - exact)).sum(1)
    assert torch.allclose(found, -exact.exp().sum(1).log(), atol=2e-3)  # float16 values
    assert kl(plain_topk(8, "zero"), z.float()) == float("inf")


@pytest.mark.parametrize("make", [tinyvit, plain_topk, megatron])
def test_rules_by_hand(make) -> None:
    """p = 1/2, 1/4, 1/8, 1/8 with two kept: at T = 2 the tail is 2 sqrt(1/8) shared evenly, sqrt(1/4) as one class."""
    z = torch.tensor([[0.5, 0.25, 0.125, 0.125]]).log()
    setting = make(2)
    view = setting.view(setting.encode(z, 2.0), 2.0, 4)
    head = torch.tensor([0.5**0.5, 0.5])
    tail = 0.5 if setting.family == "Megatron" else 2 * 0.125**0.5
    assert view.log_z is not None
    assert view.rest is not None
    assert float(view.log_z.exp()) == pytest.approx(float(head.sum() + tail), rel=1e-3)
    assert view.log_p.exp()[0].tolist() == pytest.approx((head / (head.sum() + tail)).tolist(), rel=1e-3)
    assert float(view.rest.exp()) == pytest.approx(float(tail / (head.sum() + tail)), rel=1e-3)
    assert kl(setting, z, 2.0) == pytest.approx(0.0 if setting.family != "Megatron" else 0.0130, abs=1e-3)


def test_sampling_is_unbiased() -> None:
    z = logits(1, 12, 1.0)
    setting = sampling(40, 12, 12)
    rows = 20_000
    view = setting.view(setting.encode(z.repeat(rows, 1), 1.0), 1.0, 12)
    assert view.indices is not None
    mean = torch.zeros(12).scatter_add_(0, view.indices.flatten(), view.log_p.exp().flatten()) / rows
    p = z.softmax(1)[0]
    sigma = (p * (1 - p) / 40 / rows).sqrt()
    assert ((mean - p).abs() < 5 * sigma).all()


def test_draws_reach_the_number_of_distinct_classes() -> None:
    z = logits(100, 500)
    n = draws_for(z, 1.0, 12)
    found = (sampling(n, 12, 500).encode(z.repeat(10, 1), 1.0)["counts"] > 0).sum(1).float().mean()
    assert abs(float(found) - 12) < 0.5


def test_the_judge_by_hand() -> None:
    """p = (.5, .3, .2), q even, decoded (.6, rest .4): spread evenly and as one class."""
    z, s = torch.tensor([[0.5, 0.3, 0.2]]).log(), torch.zeros(1, 3)
    ids = torch.zeros(1, 1, dtype=torch.long)
    for as_one in (False, True):
        view = View(torch.tensor([[0.6]]).log(), ids, torch.tensor([0.4]).log(), as_one)
        score = merged(iter([Judge(z, s, 1.0).sums(view)]))
        log = torch.tensor([0.5 / 0.6, 0.3 / 0.2, 0.2 / 0.2]).log()
        assert score.kl == pytest.approx(float((torch.tensor([0.5, 0.3, 0.2]) * log).sum()), rel=1e-5)
        ours, dense = (
            torch.tensor([1 / 3 - 0.6, 1 / 3 - 0.2, 1 / 3 - 0.2]),
            torch.tensor([1 / 3 - 0.5, 1 / 3 - 0.3, 1 / 3 - 0.2]),
        )
        assert score.cosine == pytest.approx(float(torch.cosine_similarity(ours, dense, dim=0)), rel=1e-5)
        assert score.norm == pytest.approx(float(ours.norm() / dense.norm()), rel=1e-5)


def test_padding_changes_nothing_wherever_it_stands() -> None:
    z, s = torch.tensor([[0.5, 0.3, 0.2]]).log(), torch.zeros(1, 3)
    log_p = torch.tensor([[0.3, 0.0, 0.7]]).log()
    padded = View(log_p, torch.tensor([[1, 0, 2]]))
    plain = View(log_p[:, [0, 2]], torch.tensor([[1, 2]]))
    first, second = (merged(iter([Judge(z, s, 1.0).sums(view)])) for view in (padded, plain))
    assert first.cosine == pytest.approx(second.cosine)
    assert first.norm == pytest.approx(second.norm)
