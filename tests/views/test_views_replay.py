"""Replay: each image by itself and in whole numbers, so nothing about how it is asked for changes a bit of it."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from view_examples import ALONE, EVERYTHING, drawn, images_of, replayed, spec_of

from kdcache.views import images as images_module


@pytest.fixture
def threads():  # type: ignore[no-untyped-def]
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize("name", ALONE)
def test_batch_order_and_threads_change_nothing(name: str, threads, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    spec = spec_of(ALONE[name], (3, 33, 31))
    found, x = drawn(spec, np.arange(160)), images_of(spec, 160)
    rows = torch.arange(160)
    threads(1)
    whole = replayed(spec, x, found, rows)
    for size in (1, 7, 64):
        parts = [replayed(spec, x, found, part) for part in rows.split(size)]
        assert torch.equal(torch.cat(parts), whole)
    shuffled = torch.randperm(160, generator=torch.Generator().manual_seed(0))
    assert torch.equal(replayed(spec, x, found, shuffled), whole[shuffled])
    threads(4)
    assert torch.equal(replayed(spec, x, found, rows), whole)
    monkeypatch.setitem(images_module._MOST_VALUES, "cpu", 1)
    assert torch.equal(replayed(spec, x, found, rows), whole)
    assert not torch.equal(whole, x)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", ALONE)
def test_a_gpu_gives_the_same_bytes(name: str) -> None:
    spec = spec_of(ALONE[name], (3, 33, 31))
    found, x = drawn(spec, np.arange(160)), images_of(spec, 160)
    rows = torch.arange(160)
    there = replayed(spec, x.cuda(), {k: v.cuda() for k, v in found.items()}, rows.cuda())
    assert torch.equal(there.cpu(), replayed(spec, x, found, rows))


def test_the_bytes_are_pinned() -> None:
    """A later version that gives other bytes would refuse every store that was written before it."""
    spec = spec_of(EVERYTHING, (3, 16, 16))
    found, x = drawn(spec, np.arange(64)), torch.arange(64 * 768).mul(37).remainder(251).byte().view(64, 3, 16, 16)
    whole = replayed(spec, x, found, torch.arange(64))
    assert hashlib.sha256(found["params"].numpy().tobytes()).hexdigest()[:16] == PARAMETERS
    assert hashlib.sha256(whole.numpy().tobytes()).hexdigest()[:16] == BYTES


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_any_numbers_within_their_bounds_can_be_replayed(data: st.DataObject) -> None:
    spec = spec_of(EVERYTHING, (3, data.draw(st.integers(1, 12)), data.draw(st.integers(1, 12))))
    numbers = {name: data.draw(st.integers(*bounds), label=name) for name, bounds in spec.bounds.items()}
    for name in spec.boxes:
        numbers[f"{name}.top"] = min(numbers[f"{name}.top"], spec.height - numbers[f"{name}.height"])
        numbers[f"{name}.left"] = min(numbers[f"{name}.left"], spec.width - numbers[f"{name}.width"])
    params = torch.tensor([list(numbers.values())] * 2, dtype=torch.int16)
    images_module.check_parameters(params, spec)
    x = images_of(spec, 2)
    found = images_module.replay(x, params, spec, partners=x.flip(0), partner_parameters=params)
    assert found.shape == x.shape
    assert found.dtype == torch.uint8


PARAMETERS = "3473d2fef813e900"
BYTES = "464421c4abd04955"
