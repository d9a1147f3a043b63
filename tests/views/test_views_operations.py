"""Every operation on images small enough to work out by hand, and against kornia's."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from kdcache.arrays import Array
from kdcache.config.views import AttackConfig, CropConfig, EraseConfig, JitterConfig, MixConfig, ViewsConfig
from kdcache.errors import UsageError
from kdcache.views import ViewsSpec, colour, own_share, replay
from kdcache.views.resample import resample

BOX = [[10, 20, 30], [40, 50, 60], [70, 80, 90]]


def spec(config: ViewsConfig, shape: tuple[int, ...] = (1, 3, 3)) -> ViewsSpec:
    return ViewsSpec(config, Array("uint8", shape))


def params(*numbers: int) -> Tensor:
    return torch.tensor([numbers], dtype=torch.int16)


def image(*rows: list[int]) -> Tensor:
    return torch.tensor([[rows]], dtype=torch.uint8)


def test_flip_exchanges_left_and_right() -> None:
    flips = spec(ViewsConfig(flip=0.5))
    assert replay(image(*BOX), params(1), flips)[0, 0].tolist() == [[30, 20, 10], [60, 50, 40], [90, 80, 70]]
    assert replay(image(*BOX), params(0), flips)[0, 0].tolist() == BOX


def test_shift_takes_what_lies_down_and_right_and_lets_black_in() -> None:
    shifts = spec(ViewsConfig(shift=3))
    assert replay(image(*BOX), params(1, 0), shifts)[0, 0].tolist() == [[40, 50, 60], [70, 80, 90], [0, 0, 0]]
    assert replay(image(*BOX), params(-1, 1), shifts)[0, 0].tolist() == [[0, 0, 0], [20, 30, 0], [50, 60, 0]]
    assert replay(image(*BOX), params(3, 0), shifts).sum() == 0


def test_a_flip_comes_after_a_shift() -> None:
    both = spec(ViewsConfig(shift=1, flip=0.5))
    assert replay(image(*BOX), params(0, 1, 1), both)[0, 0].tolist() == [[0, 30, 20], [0, 60, 50], [0, 90, 80]]


def test_crop_is_resized_by_the_distance_of_pixel_centres() -> None:
    crops = spec(ViewsConfig(crop=CropConfig()), (1, 4, 4))
    x = torch.zeros(1, 1, 4, 4, dtype=torch.uint8)
    x[0, 0, 1:3, 2:4] = torch.tensor([[0, 100], [100, 200]], dtype=torch.uint8)
    # Four places over two pixels: centres at -1/4, 1/4, 3/4, 5/4, so weights 0, 1/4, 3/4, 1 of the second.
    along = [0, 25, 75, 100]
    assert replay(x, params(1, 2, 2, 2), crops)[0, 0].tolist() == [[a + b for b in along] for a in along]
    assert torch.equal(replay(x, params(0, 0, 4, 4), crops), x), "the whole image is the image"


def test_crop_of_one_pixel_is_that_pixel_everywhere() -> None:
    crops = spec(ViewsConfig(crop=CropConfig()))
    assert replay(image(*BOX), params(2, 1, 1, 1), crops).unique().tolist() == [80]


def test_crop_is_torchs_bilinear_resize_but_for_rounding() -> None:
    draw = torch.Generator().manual_seed(0)
    x = torch.randint(0, 256, (8, 3, 11, 14), dtype=torch.uint8, generator=draw)
    for top, left, tall, wide in ((0, 0, 11, 14), (3, 5, 8, 9), (10, 0, 1, 14), (2, 4, 5, 3)):
        box = torch.tensor([[top, left, tall, wide]] * 8, dtype=torch.int32)
        part = x[:, :, top : top + tall, left : left + wide].double()
        expected = torch.nn.functional.interpolate(part, (11, 14), mode="bilinear", align_corners=False)
        assert float((resample(x, box).double() - expected).abs().max()) <= 0.5 + 255 / 2048


def test_brightness_and_contrast_by_hand() -> None:
    bright = spec(ViewsConfig(jitter=JitterConfig(brightness=1.0)))
    assert replay(image(*BOX), params(384), bright)[0, 0].tolist() == [[15, 30, 45], [60, 75, 90], [105, 120, 135]]
    assert replay(image([200, 1, 0]), params(512), spec(bright.config, (1, 1, 3)))[0, 0].tolist() == [[255, 2, 0]]
    contrast = spec(ViewsConfig(jitter=JitterConfig(contrast=1.0)))  # the mean is 50
    assert replay(image(*BOX), params(128), contrast)[0, 0].tolist() == [[30, 35, 40], [45, 50, 55], [60, 65, 70]]
    assert replay(image(*BOX), params(0), contrast).unique().tolist() == [50]


def test_saturation_and_hue_by_hand() -> None:
    pixel = torch.tensor([[[[200]], [[100]], [[0]]]], dtype=torch.uint8)
    grey = 77 * 200 + 150 * 100  # in 256ths: 118.75
    saturated = spec(ViewsConfig(jitter=JitterConfig(saturation=1.0)), (3, 1, 1))
    assert replay(pixel, params(0), saturated).flatten().tolist() == [round(grey / 256)] * 3
    half = [round(grey / 512 + value / 2) for value in (200, 100, 0)]
    assert replay(pixel, params(128), saturated).flatten().tolist() == half
    turned = spec(ViewsConfig(jitter=JitterConfig(hue=0.5)), (3, 1, 1))
    assert replay(pixel, params(1024), turned).flatten().tolist() == [0, 200, 100], "a third of a turn: red to green"
    assert replay(pixel, params(-1024), turned).flatten().tolist() == [100, 0, 200]
    assert replay(pixel, params(1536), turned).flatten().tolist() == [0, 100, 200], "half a turn: the complement"


def test_nothing_changes_at_factor_1_and_hue_0() -> None:
    draw = torch.Generator().manual_seed(1)
    x = torch.randint(0, 256, (64, 3, 16, 16), dtype=torch.uint8, generator=draw)
    one, zero = torch.full((64,), 256, dtype=torch.int32), torch.zeros(64, dtype=torch.int32)
    for same in (colour.brightness(x, one), colour.contrast(x, one), colour.saturation(x, one), colour.hue(x, zero)):
        assert torch.equal(same, x)


def test_colours_are_kornias_but_for_rounding() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        enhance = pytest.importorskip("kornia.enhance")
    draw = torch.Generator().manual_seed(2)
    x = torch.randint(0, 256, (32, 3, 8, 9), dtype=torch.uint8, generator=draw)
    wide = x.float() / 255
    factor = torch.randint(100, 512, (32,), generator=draw).int()
    turn = torch.randint(-1536, 1537, (32,), generator=draw).int()
    for ours, theirs in (
        (colour.contrast(x, factor), enhance.adjust_contrast_with_mean_subtraction(wide, factor / 256)),
        (colour.saturation(x, factor), enhance.adjust_saturation_with_gray_subtraction(wide, factor / 256)),
        (colour.hue(x, turn), enhance.adjust_hue(wide, turn * (2 * torch.pi / 3072))),
    ):
        assert float((ours.float() - theirs * 255).abs().max()) < 1.0


def test_erase_fills_a_box() -> None:
    erases = spec(ViewsConfig(erase=EraseConfig(value=7)))
    assert replay(image(*BOX), params(1, 0, 2, 2), erases)[0, 0].tolist() == [[10, 20, 30], [7, 7, 60], [7, 7, 90]]
    assert replay(image(*BOX), params(0, 0, 0, 0), erases)[0, 0].tolist() == BOX


def test_mixup_is_a_weighted_mean_and_cutmix_a_box() -> None:
    other = image([0, 0, 0], [100, 100, 100], [255, 255, 255])
    mixes = spec(ViewsConfig(mixup=MixConfig(), cutmix=MixConfig()))

    def mixed(*numbers: int) -> list[list[int]]:
        given = replay(image(*BOX), params(*numbers), mixes, partners=other, partner_parameters=params(256, 0, 0, 0, 0))
        found: list[list[int]] = given[0, 0].tolist()
        return found

    assert mixed(64, 0, 0, 0, 0) == [[3, 5, 8], [85, 88, 90], [209, 211, 214]]
    assert mixed(256, 1, 1, 2, 2) == [[10, 20, 30], [40, 100, 100], [70, 255, 255]]
    shares = own_share(torch.tensor([[64, 0, 0, 0, 0], [256, 1, 1, 2, 2], [256, 0, 0, 0, 0]], dtype=torch.int16), mixes)
    assert shares.tolist() == pytest.approx([0.25, 5 / 9, 1.0])


def test_the_partner_goes_through_its_own_operations_first() -> None:
    mixes = spec(ViewsConfig(flip=0.5, cutmix=MixConfig()))
    found = replay(
        image(*BOX), params(0, 0, 0, 3, 3), mixes, partners=image(*BOX), partner_parameters=params(1, 0, 0, 0, 0)
    )
    assert found[0, 0].tolist() == [[30, 20, 10], [60, 50, 40], [90, 80, 70]]


def test_a_perturbation_is_added_last_and_held_within_a_byte() -> None:
    attacked = spec(ViewsConfig(flip=0.5, attack=AttackConfig(epsilon=20)))
    delta = torch.tensor([[[[-20, 1, 2], [0, 0, 0], [0, 0, 20]]]], dtype=torch.int8)
    given = image([250, 255, 5], [1, 2, 3], [240, 0, 0])
    assert replay(given, params(1), attacked, delta=delta)[0, 0].tolist() == [[0, 255, 252], [3, 2, 1], [0, 0, 255]]


def test_images_without_channels() -> None:
    flat = spec(ViewsConfig(flip=0.5), (3, 3))
    assert replay(image(*BOX)[:, 0], params(1), flat)[0].tolist() == [[30, 20, 10], [60, 50, 40], [90, 80, 70]]


@pytest.mark.parametrize(
    ("config", "change", "said"),
    [
        (ViewsConfig(flip=0.5), {"images": torch.zeros(1, 1, 3, 3)}, "torch.float32"),
        (ViewsConfig(flip=0.5), {"images": torch.zeros(1, 1, 4, 3, dtype=torch.uint8)}, "4, 3"),
        (ViewsConfig(mixup=MixConfig()), {}, "partners"),
        (ViewsConfig(attack=AttackConfig()), {}, "delta"),
    ],
)
def test_what_is_missing_or_of_another_shape_is_told(config: ViewsConfig, change: dict[str, Any], said: str) -> None:
    numbers = torch.zeros(1, len(spec(config).layout), dtype=torch.int16)
    with pytest.raises(UsageError, match=said):
        replay(change.get("images", image(*BOX)), numbers, spec(config))


def test_integers_give_what_floats_give() -> None:
    """The lerp in 2048ths is that of the same weights in float64, rounded half up."""
    rng = np.random.default_rng(3)
    x = torch.from_numpy(rng.integers(0, 256, (5, 2, 6, 7), np.uint8))
    box = torch.tensor([[1, 2, 3, 5]] * 5, dtype=torch.int32)

    def axis(size: int, start: int, length: int) -> list[tuple[int, int, float]]:
        found = []
        for i in range(size):
            place = ((2 * i + 1) * length - size) / (2 * size)
            low = int(np.floor(place))
            weight = np.floor((place - low) * 2048 + 0.5) / 2048
            found.append((start + min(max(low, 0), length - 1), start + min(max(low + 1, 0), length - 1), weight))
        return found

    wanted = np.empty(x.shape)
    for y, (a, b, v) in enumerate(axis(6, 1, 3)):
        for z, (c, d, w) in enumerate(axis(7, 2, 5)):
            top = x[:, :, a, c].numpy() * (1 - w) + x[:, :, a, d].numpy() * w
            low_ = x[:, :, b, c].numpy() * (1 - w) + x[:, :, b, d].numpy() * w
            wanted[:, :, y, z] = np.floor(top * (1 - v) + low_ * v + 0.5)
    np.testing.assert_array_equal(resample(x, box).numpy(), wanted)
