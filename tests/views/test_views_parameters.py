"""Parameters: a pure function of seed, view and id, inside their bounds, with the frequencies that were asked for."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from view_examples import ALONE, BLOCK, EVERYTHING, drawn, spec_of

from kdcache.config.views import CropConfig, EraseConfig, JitterConfig, MixConfig, ViewsConfig
from kdcache.errors import StoreDamaged
from kdcache.views import ViewsSpec, check_parameters, draw


def column(spec: ViewsSpec, name: str, rows: int = 20_000) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    found = drawn(spec, np.arange(rows))["params"][:, spec.place(name)]
    return found.numpy().astype(np.float64)


@pytest.mark.parametrize("name", ALONE)
def test_they_are_a_function_of_seed_view_and_id_alone(name: str) -> None:
    spec, ids = spec_of(ALONE[name]), np.arange(96) * 7 + 3
    whole = drawn(spec, ids)
    again = drawn(spec, ids[32:64])
    for field, values in again.items():
        assert torch.equal(values, whole[field][32:64])
    others = (
        drawn(spec, ids, view=2),
        drawn(spec_of(ALONE[name].model_copy(update={"seed": 9})), ids),
        drawn(spec, ids + 1),
    )
    for other in others:
        assert not torch.equal(other["params"], whole["params"])


def test_they_are_pinned() -> None:
    """Numbers that a later version must draw again, or go on with another dump's plan wrongly."""
    spec = spec_of(EVERYTHING)
    found = draw(spec, 1, np.array([0, 5, 10**12]), np.array([0, 1, 2]), np.array([3, 3, 3]))
    assert found["params"].tolist() == PINNED
    assert found["partner"].tolist() == PINNED_PARTNERS
    assert spec.layout == (
        "crop.top", "crop.left", "crop.height", "crop.width", "shift.down", "shift.right", "flip", "jitter.brightness",
        "jitter.contrast", "jitter.saturation", "jitter.hue", "erase.top", "erase.left", "erase.height", "erase.width",
        "mixup.share", "cutmix.top", "cutmix.left", "cutmix.height", "cutmix.width",
    )  # fmt: skip


def test_a_partner_is_another_row_of_the_same_block() -> None:
    rows = 40  # blocks of 16, 16 and 8
    found = drawn(spec_of(ALONE["cutmix"]), np.arange(rows) * 3)
    place = torch.arange(rows)
    partner = place + found["partner"]
    assert torch.equal(partner // BLOCK, place // BLOCK)
    assert (partner != place).all()
    assert len(set((partner[:16] - place[:16]).tolist())) > 5
    alone = draw(spec_of(ALONE["cutmix"]), 1, np.array([4]), np.array([0]), np.array([1]))
    assert alone["partner"].tolist() == [0]
    assert alone["params"][:, 2:].tolist() == [[0, 0]], "nobody to be mixed with"


def test_frequencies_are_those_asked_for() -> None:
    assert column(spec_of(ViewsConfig(flip=0.3)), "flip").mean() == pytest.approx(0.3, abs=0.015)
    shifts = column(spec_of(ViewsConfig(shift=2)), "shift.down")
    assert np.bincount((shifts + 2).astype(int)).tolist() == pytest.approx([4000] * 5, rel=0.08)
    erased = column(spec_of(ViewsConfig(erase=EraseConfig(probability=0.2))), "erase.height") > 0
    assert erased.mean() == pytest.approx(0.2, abs=0.015)
    jitter = spec_of(ViewsConfig(jitter=JitterConfig(brightness=0.5, probability=0.5)))
    factor = column(jitter, "jitter.brightness") / 256
    assert (factor == 1).mean() == pytest.approx(0.5, abs=0.02)
    assert (factor.min(), factor.max()) == pytest.approx((0.5, 1.5), abs=0.01)
    both = spec_of(ViewsConfig(mixup=MixConfig(probability=0.25), cutmix=MixConfig(probability=0.5)), (3, 32, 32))
    assert (column(both, "mixup.share") < 256).mean() == pytest.approx(0.25, abs=0.015)
    assert (column(both, "cutmix.height") > 0).mean() == pytest.approx(0.5, abs=0.03)


@pytest.mark.parametrize("alpha", [0.05, 0.2, 1.0, 4.0])
def test_shares_are_beta(alpha: float) -> None:
    share = column(spec_of(ViewsConfig(mixup=MixConfig(alpha=alpha))), "mixup.share") / 256
    assert share.mean() == pytest.approx(0.5, abs=0.015)
    assert share.var() == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.04)


def test_crops_have_the_areas_and_ratios_asked_for() -> None:
    spec = spec_of(ViewsConfig(crop=CropConfig(scale=(0.2, 0.5), ratio=(0.5, 2.0))), (3, 400, 400))
    area = column(spec, "crop.height") * column(spec, "crop.width") / 400**2
    assert 0.19 < area.min() < area.max() < 0.51
    assert area.mean() == pytest.approx(0.35, abs=0.005)
    ratio = np.log2(column(spec, "crop.width") / column(spec, "crop.height"))
    assert (ratio.min(), ratio.max(), ratio.mean()) == pytest.approx((-1, 1, 0), abs=0.03)


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_whatever_is_drawn_is_accepted(data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(sorted(ALONE)))
    side = st.integers(1, 40)
    spec = spec_of(ALONE[name], (3, data.draw(side), data.draw(side)))
    ids = np.array(data.draw(st.lists(st.integers(0, 2**62), min_size=1, max_size=40)))
    found = drawn(spec, ids, data.draw(st.integers(1, 99)))
    check_parameters(found["params"], spec)
    if "partner" in found:
        place = torch.arange(len(ids)) % BLOCK + found["partner"]
        assert ((place >= 0) & (place < BLOCK)).all()


@settings(deadline=None, max_examples=100)
@given(st.data())
def test_whatever_lies_outside_is_refused(data: st.DataObject) -> None:
    spec = spec_of(EVERYTHING)
    found = drawn(spec, np.arange(8))["params"]
    name = data.draw(st.sampled_from(spec.layout))
    low, high = spec.bounds[name]
    wrong = data.draw(st.integers(-(2**15), low - 1) | st.integers(high + 1, 2**15 - 1))
    found[data.draw(st.integers(0, 7)), spec.place(name)] = wrong
    with pytest.raises(StoreDamaged, match=f"{name} = {wrong}"):
        check_parameters(found, spec)


@pytest.mark.parametrize("name", ["crop", "erase", "cutmix"])
@pytest.mark.parametrize(("part", "along"), [("top", "height"), ("left", "width")])
def test_a_box_beyond_the_image_is_refused(name: str, part: str, along: str) -> None:
    spec = spec_of(EVERYTHING)
    found = drawn(spec, np.arange(8))["params"]
    found[5, spec.place(f"{name}.{part}")], found[5, spec.place(f"{name}.{along}")] = 3, 7
    with pytest.raises(StoreDamaged, match=f"row 5 .*{name} box"):
        check_parameters(found, spec)


PINNED = [
    [0, 0, 8, 7, -1, 1, 1, 263, 242, 155, 475, 1, 0, 6, 3, 0, 0, 0, 0, 0],
    [3, 1, 5, 6, 0, 1, 0, 281, 328, 198, 102, 0, 3, 7, 2, 256, 0, 1, 8, 6],
    [0, 0, 7, 7, 2, 2, 0, 256, 256, 256, 0, 4, 1, 4, 5, 256, 0, 1, 4, 3],
]
PINNED_PARTNERS = [2, 1, -1]
