from __future__ import annotations

import importlib
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import kdcache.codecs
from kdcache.arrays import Array
from kdcache.codecs import QuantisedLogits, SampledLogits, SparseLogits, Targets, fidelity, topk
from kdcache.codecs.fidelity import LOG_Z_GRID, gradients, log_z_error, log_z_errors, row_errors, stand_in
from kdcache.errors import UsageError
from kdcache.objectives import kd


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 3


def kept(logits: torch.Tensor, k: int) -> SparseLogits:
    array = Array("float32", tuple(logits.shape[1:]))
    configuration = topk.configure({"k": k, "dtype": "float32"}, array)
    found = topk.decode(topk.encode(logits, configuration, {}), array, configuration, {})
    assert isinstance(found, SparseLogits)
    return found


def test_dense_by_hand() -> None:
    # p = (3/4, 1/4) against (1/2, 1/2).
    found = fidelity(torch.tensor([[math.log(3), 0.0]]), torch.zeros(1, 2), temperatures=[1])
    assert found == {"kl": {"1": pytest.approx(0.75 * math.log(1.5) + 0.25 * math.log(0.5))}}


def test_sparse_by_hand() -> None:
    # p = (4, 2, 1, 1) / 8 with one class kept: the other half is spread over three.
    logits = torch.tensor([[4.0, 2.0, 1.0, 1.0]]).log()
    rest = np.log([2 / 8, 1 / 8, 1 / 8])
    tail = torch.tensor([[rest.mean(), rest.var(), math.log(1 / 2)]])
    targets = SparseLogits(torch.tensor([[0]]), torch.tensor([[math.log(1 / 2)]]), tail, 4)
    wanted = 0.25 * math.log(0.25 * 6) + 2 * 0.125 * math.log(0.125 * 6)
    assert fidelity(logits, targets, [1])["kl"]["1"] == pytest.approx(wanted, abs=1e-6)


def test_a_slot_that_holds_no_class_counts_to_the_tail() -> None:
    # As above, with room for two classes and one kept: padding has the class of slot 0, and no mass.
    logits = torch.tensor([[4.0, 2.0, 1.0, 1.0]]).log()
    rest = np.log([2 / 8, 1 / 8, 1 / 8])
    tail = torch.tensor([[rest.mean(), rest.var(), math.log(1 / 2)]])
    padded = SparseLogits(torch.tensor([[0, 0]]), torch.tensor([[math.log(1 / 2), -math.inf]]), tail, 4)
    wanted = 0.25 * math.log(0.25 * 6) + 2 * 0.125 * math.log(0.125 * 6)
    assert fidelity(logits, padded, [1])["kl"]["1"] == pytest.approx(wanted, abs=1e-6)
    assert math.isfinite(gradients(logits, logits.flip(1), padded, 1)["cosine"])


def test_estimates_have_a_squared_error_and_no_kl() -> None:
    # p = (3/4, 1/4) against (1, 0), and against itself: 2 / 16 and 0; the padding says nothing.
    logits = torch.tensor([[math.log(3), 0.0]]).repeat(2, 1)
    targets = SampledLogits(torch.tensor([[0, 0], [0, 1]]), torch.tensor([[1.0, 0.0], [0.75, 0.25]]), 1.0, 2)
    assert fidelity(logits, targets) == {"squared_error": {"1": pytest.approx(1 / 16)}}
    with pytest.raises(UsageError, match=r"drawn at T = 1 and serve no other"):
        gradients(logits, logits, targets, 2.0)


def test_complete_targets_lose_nothing() -> None:
    logits = drawn(30, 6)
    assert all(abs(kl) < 1e-8 for kl in fidelity(logits, kept(logits, 6))["kl"].values())
    assert fidelity(logits, logits) == {"kl": {"1": 0.0, "2": 0.0, "4": 0.0}}
    same = gradients(logits, stand_in(logits), kept(logits, 6), 2)
    assert same == {"cosine": pytest.approx(1.0), "norm_ratio": pytest.approx(1.0)}


@settings(max_examples=20, deadline=None)
@given(rows=st.integers(1, 9), places=st.integers(1, 4), classes=st.integers(2, 12), t=st.sampled_from([1.0, 2.0, 7.0]))
def test_any_lead_axes_and_every_kind_of_targets(rows: int, places: int, classes: int, t: float) -> None:
    logits = drawn(rows, places, classes, seed=classes)
    codes = (logits * 10 + 128).round().clamp(0, 255)
    quantised = QuantisedLogits(
        codes.to(torch.uint8), torch.full((rows, places, 1), 0.1), torch.full((rows, places, 1), -12.8)
    )
    p, log_p = torch.softmax(logits.double() / t, -1), torch.log_softmax(logits.double() / t, -1)
    wanted = (p * (log_p - torch.log_softmax(quantised.dense().double() / t, -1))).sum(-1)
    torch.testing.assert_close(row_errors(logits, quantised, t), wanted.flatten())
    sparse = kept(logits.flatten(0, 1), max(1, classes // 2))
    shaped = SparseLogits(**{**vars(sparse), **{
        name: None if value is None else value.view(rows, places, -1)
        for name, value in vars(sparse).items() if name in ("indices", "log_p", "tail")
    }})  # fmt: skip
    torch.testing.assert_close(row_errors(logits, shaped, t), row_errors(logits.flatten(0, 1), sparse, t))


def test_chunks_of_rows_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    logits = drawn(50, 7)
    targets = kept(logits, 3)
    whole = [row_errors(logits, targets, 2.0), log_z_errors(logits, targets), stand_in(logits)]
    compared = gradients(logits, stand_in(logits), targets, 2.0)
    monkeypatch.setattr(importlib.import_module("kdcache.codecs.fidelity"), "_CHUNK", 20)
    for one, other in zip(whole, [row_errors(logits, targets, 2.0), log_z_errors(logits, targets), stand_in(logits)],
                          strict=True):  # fmt: skip
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-13)
    assert gradients(logits, stand_in(logits), targets, 2.0) == pytest.approx(compared)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
@pytest.mark.parametrize("k", [2, 5, 11])
def test_gradients_are_those_of_the_objective(k: int, temperature: float) -> None:
    teacher = drawn(20, 12)
    for targets in (kept(teacher, k), teacher + drawn(20, 12, seed=1) * 0.1):
        found = []
        for against in (teacher.double(), targets):
            student = stand_in(teacher).requires_grad_()
            kd(student, against, temperature=temperature).backward()
            assert student.grad is not None
            found.append(student.grad)
        exact, stored = found
        cosine = torch.nn.functional.cosine_similarity(exact, stored, dim=1).mean()
        ratio = (stored.norm(dim=1) / exact.norm(dim=1)).mean()
        wanted = {"cosine": pytest.approx(float(cosine), abs=1e-4), "norm_ratio": pytest.approx(float(ratio), rel=1e-3)}
        assert gradients(teacher, stand_in(teacher), targets, temperature) == wanted


def test_the_stand_in_is_a_student_half_way() -> None:
    teacher = drawn(400, 50)
    student = stand_in(teacher)
    centred = teacher.double() - teacher.double().mean(1, keepdim=True)
    joined = torch.stack([centred.flatten(), student.flatten()])
    # 20,000 values: the standard error of a correlation of 0.71 is 0.0035.
    assert float(torch.corrcoef(joined)[0, 1]) == pytest.approx(math.sqrt(0.5), abs=0.02)
    keys = torch.arange(400)
    assert torch.equal(student, stand_in(teacher, keys))
    assert torch.equal(student[100:200], stand_in(teacher[100:200], keys[100:200])), "of the row and its key alone"
    assert torch.equal(stand_in(teacher + 5.0), stand_in(teacher + 5.0))


def test_log_z_by_hand() -> None:
    # p = (4, 2, 1, 1) / 8 with all four kept, but the first one's logarithm 0.1 too large: Z is 1 + (e^0.1 - 1) / 2.
    logits = torch.tensor([[4.0, 2.0, 1.0, 1.0]]).log()
    wrong = torch.log_softmax(logits, 1) + torch.tensor([[0.1, 0.0, 0.0, 0.0]])
    errors = log_z_errors(logits, SparseLogits(torch.arange(4)[None], wrong, None, 4), [1.0])
    assert float(errors) == pytest.approx(math.log(1 + (math.exp(0.1) - 1) / 2), abs=1e-6)


def test_log_z_summary_is_mean_p99_and_max_by_temperature() -> None:
    errors = torch.arange(200, dtype=torch.float64)[:, None] * torch.ones(len(LOG_Z_GRID), dtype=torch.float64)
    found = log_z_error(errors)
    assert set(found) == {"log_z_error", "log_z_error_mean", "log_z_error_max"}
    assert list(found["log_z_error"]) == ["1", "1.5", "2", "3", "4", "6", "8", "12", "16", "20"]
    assert (found["log_z_error"]["1.5"], found["log_z_error_mean"]["2"], found["log_z_error_max"]["20"]) == (
        197.0,
        99.5,
        199.0,
    )


def test_log_z_error_of_a_sketch_is_none_where_it_is_exact() -> None:
    logits = drawn(100, 20)
    errors = log_z_errors(logits, kept(logits, 19))  # one class in the tail: known at every temperature
    assert float(errors.max()) < 1e-5
    wider = log_z_errors(logits, kept(logits, 3))
    assert float(wider[:, 0].max()) < 1e-5
    assert 1e-4 < float(wider.max()) < 0.5


def test_targets_of_another_shape_are_refused() -> None:
    targets: Targets = torch.zeros(3, 4)
    with pytest.raises(UsageError, match=r"\[3, 4\], the teacher's logits \[3, 5\]"):
        row_errors(torch.zeros(3, 5), targets, 1.0)


def test_one_door() -> None:
    assert kdcache.codecs.__all__ == sorted(kdcache.codecs.__all__)
    assert all(hasattr(kdcache.codecs, name) for name in kdcache.codecs.__all__)
