"""Augmentation against one sample at a time, and its determinism."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from kdcache.errors import UsageError
from kdcache.student.augment import augment, augment_generator

DTYPES = [torch.uint8, torch.float32, torch.float16, torch.int64]


def images(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    return (torch.randperm(torch.Size(shape).numel()).reshape(shape) % 251 + 1).to(dtype)


def slow_flip(x: Tensor, seed: int) -> Tensor:
    drawn = torch.randint(0, 2, (len(x), 1, 1, 1), generator=augment_generator(seed, 0)).flatten().tolist()
    return torch.stack(
        [torch.tensor(s.numpy()[..., ::-1].copy()) if flip else s for s, flip in zip(x, drawn, strict=True)]
    )


def slow_crop(x: Tensor, seed: int) -> Tensor:
    height, width = x.shape[-2:]
    down, right = (4 if side >= 28 else max(1, side // 8) for side in (height, width))
    generator = augment_generator(seed, 0)
    tops = torch.randint(0, 2 * down + 1, (len(x),), generator=generator).tolist()
    lefts = torch.randint(0, 2 * right + 1, (len(x),), generator=generator).tolist()
    out = torch.zeros_like(x)
    for sample, (top, left) in enumerate(zip(tops, lefts, strict=True)):
        for i in range(height):
            for j in range(width):
                row, column = i + top - down, j + left - right
                if 0 <= row < height and 0 <= column < width:
                    out[sample, ..., i, j] = x[sample, ..., row, column]
    return out


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(7, 8, 8), (5, 3, 8, 8), (3, 2, 28, 9), (1, 1, 5, 16)])
def test_equals_one_sample_at_a_time(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x = images(shape, dtype)
    kept = x.clone()
    for seed in range(3):
        assert torch.equal(augment(x, ["flip"], augment_generator(seed, 0)), slow_flip(x, seed))
        assert torch.equal(augment(x, ["crop"], augment_generator(seed, 0)), slow_crop(x, seed))
    assert torch.equal(x, kept)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**63), step=st.integers(0, 2**40), names=st.permutations(["flip", "crop"]))
def test_a_pure_function_of_seed_and_step(seed: int, step: int, names: list[str]) -> None:
    x = images((16, 8, 8), torch.uint8)
    once = augment(x, names, augment_generator(seed, step))
    torch.rand(5)  # the global generator has no part in it
    assert torch.equal(once, augment(x, names, augment_generator(seed, step)))
    assert once.shape == x.shape
    assert once.dtype == x.dtype


def test_seeds_steps_and_ranks_differ_and_are_not_summed() -> None:
    x = images((64, 8, 8), torch.uint8)
    keys = [(0, 0, 0), (0, 1, 0), (1, 0, 0), (0, 0, 1)]
    seen = [augment(x, ["flip", "crop"], augment_generator(*key)) for key in keys]
    assert not any(torch.equal(a, b) for i, a in enumerate(seen) for b in seen[:i])


def test_half_are_flipped_and_all_offsets_come_equally_often() -> None:
    x = torch.zeros(8000, 8, 8, dtype=torch.uint8)
    x[:, 3, 3] = 1
    flipped = augment(x, ["flip"], augment_generator(0, 0))
    assert flipped[:, 3, 4].float().mean().item() == pytest.approx(0.5, abs=0.02)  # 3.6 standard deviations
    offsets = augment(x, ["crop"], augment_generator(0, 0)).float().mean(0)[2:5, 2:5]
    assert offsets.sum().item() == pytest.approx(1)
    assert ((offsets - 1 / 9).abs() < 0.014).all()


def test_nothing_asked_for_changes_nothing() -> None:
    x = torch.rand(2, 5)
    assert augment(x, [], augment_generator(0, 0)) is x


def test_the_last_short_batch_and_an_empty_one() -> None:
    for rows in (0, 1):
        x = images((rows, 3, 8, 8), torch.uint8)
        assert augment(x, ["flip", "crop"], augment_generator(0, 0)).shape == x.shape


@pytest.mark.parametrize("shape", [(4,), (4, 5), (4, 1, 2, 3, 5)])
def test_inputs_without_an_image_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(UsageError, match="needs images"):
        augment(torch.rand(shape), ["flip"], augment_generator(0, 0))


def test_unknown_names_are_refused() -> None:
    with pytest.raises(UsageError, match="'rotate' is unknown; known: crop, flip"):
        augment(torch.rand(2, 8, 8), ["rotate"], augment_generator(0, 0))
