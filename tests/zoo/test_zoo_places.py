"""Networks that judge many places of an image: `zoo:detector` and `zoo:segmenter`."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.nn.functional import cross_entropy

from kdcache.arrays import Array
from kdcache.errors import UsageError
from kdcache.models import WeightsInfo, build_model, load_model, save_weights
from kdcache.taps import tap_outputs
from kdcache.zoo import ZOO
from kdcache.zoo.detector import cell_centres

IMAGE = Array("uint8", (3, 32, 48))


@pytest.mark.parametrize("centerness", [True, False])
@pytest.mark.parametrize(("stride", "places"), [(4, 96), (8, 24), (16, 6)])
def test_detector_outputs(stride: int, places: int, centerness: bool) -> None:
    args = {"stride": stride, "centerness": centerness, "neck": 8, "widths": [4, 8, 8, 8]}
    model = build_model("zoo:detector", args, input=IMAGE, outputs=4)
    outputs = model(torch.rand(2, 3, 32, 48))
    assert outputs["logits"].shape == (2, places, 4)
    assert outputs["boxes"].shape == (2, places, 4)
    assert (outputs["boxes"] > 0).all()
    assert ("centerness" in outputs) == centerness
    assert not centerness or outputs["centerness"].shape == (2, places)
    assert len(cell_centres(32, 48, stride)) == places
    torch.testing.assert_close(outputs["logits"].softmax(-1)[..., 0].mean().item(), 0.99, atol=0.01, rtol=0)
    sum(tensor.square().sum() for tensor in outputs.values()).backward()
    assert all(p.grad is not None for p in model.parameters())


def test_places_are_row_by_row() -> None:
    assert cell_centres(16, 24, 8).tolist() == [[4, 4], [12, 4], [20, 4], [4, 12], [12, 12], [20, 12]]
    torch.manual_seed(0)
    model = ZOO["detector"]((1, 32, 64), 2, widths=[4, 8], stride=4, neck=8, depth=1).eval()
    x = torch.zeros(1, 1, 32, 64)
    x[..., 0:4, 60:64] = 5.0
    moved = (model(x)["boxes"] - model(torch.zeros_like(x))["boxes"])[0].abs().amax(1)
    centre = cell_centres(32, 64, 4)[moved.argmax()]
    assert centre[0] > 48, "the right"
    assert centre[1] < 16, "the top"


def test_a_detectors_coarse_stages_widen_what_a_place_sees() -> None:
    def seen(widths: list[int]) -> int:
        torch.manual_seed(0)
        model = ZOO["detector"]((1, 128, 128), 2, widths=widths, stride=8, neck=8).eval()
        x = torch.rand(1, 1, 128, 128, requires_grad=True)
        model(x)["boxes"][0, 8 * 16 + 8].sum().backward()
        rows = x.grad[0, 0].any(1).nonzero()
        return int(rows.max() - rows.min()) + 1

    assert 43 < seen([16, 16, 16]) < seen([16, 16, 16, 16])


def test_taps_of_the_detector() -> None:
    model = ZOO["detector"]((3, 32, 48), 4, neck=8, widths=[4, 6, 8, 10])
    names = {"a": "stages.0", "b": "stages.3", "c": "neck", "d": "class_tower"}
    with tap_outputs(model, names) as taps:
        model(torch.rand(2, 3, 32, 48))
    shapes = [tuple(taps[key].shape) for key in "abcd"]
    assert shapes == [(2, 4, 16, 24), (2, 10, 2, 3), (2, 8, 4, 6), (2, 8, 4, 6)]


@pytest.mark.parametrize(("stride", "places"), [(1, 32 * 48), (2, 16 * 24), (4, 8 * 12)])
def test_segmenter_logits_and_taps(stride: int, places: int) -> None:
    model = build_model("zoo:segmenter", {"stride": stride, "widths": [4, 6, 8]}, input=IMAGE, outputs=5)
    names = {"bottom": "encoder.2", "features": "features"}
    with tap_outputs(model, names) as taps:
        logits = model(torch.rand(2, 3, 32, 48))
    assert logits.shape == (2, places, 5)
    assert taps["bottom"].shape == (2, 8, 8, 12)
    features = taps["features"]
    assert features.shape == (2, [4, 6, 8][stride.bit_length() - 1], 32 // stride, 48 // stride)
    torch.testing.assert_close(logits, model.head(features).permute(0, 2, 3, 1).reshape(2, places, 5))
    logits.square().sum().backward()
    assert all(p.grad is not None for p in model.parameters())


def test_the_segmenter_learns_which_pixels_are_bright_and_takes_odd_sides() -> None:
    torch.manual_seed(0)
    model = ZOO["segmenter"]((13, 18), 2, widths=[4, 8])
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(40):
        x = torch.rand(8, 13, 18)
        loss = cross_entropy(model(x).flatten(0, 1), (x > 0.5).long().flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.3


@pytest.mark.parametrize(("name", "args"), [("detector", {"centerness": True}), ("segmenter", {"stride": 2})])
def test_weights_come_back(name: str, args: dict[str, object], tmp_path: Path) -> None:
    model = build_model(f"zoo:{name}", args, input=IMAGE, outputs=3)
    save_weights(tmp_path / "w", model, WeightsInfo(f"zoo:{name}", args, IMAGE, 3))
    x = torch.rand(1, 3, 32, 48)
    found, wanted = load_model(tmp_path / "w")[0].eval()(x), model.eval()(x)
    for key in wanted if isinstance(wanted, dict) else [...]:
        assert torch.equal(found[key], wanted[key])


@pytest.mark.parametrize(
    ("name", "shape", "args", "said"),
    [
        ("detector", (3, 32, 32), {"stride": 6}, "stride = 6 must be one of 2, 4, 8, 16 with 4 widths"),
        ("detector", (3, 32, 32), {"stride": 16, "widths": [4, 4]}, "one of 2, 4 with 2"),
        ("detector", (3, 36, 32), {}, "stride = 8 must divide both sides of the image, 36x32"),
        ("detector", (3, 8, 8), {}, "smallest input is 16x16"),
        ("detector", (3, 32, 32), {"centerness": "yes"}, "centerness = 'yes'"),
        ("segmenter", (3, 32, 32), {"stride": 3}, "stride = 3 must be one of 1, 2, 4 with 3 widths"),
        ("segmenter", (3, 33, 32), {"stride": 2}, "divide both sides"),
        ("segmenter", (32,), {}, "takes images"),
    ],
)
def test_what_cannot_be_built(name: str, shape: tuple[int, ...], args: dict[str, object], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        ZOO[name](shape, 3, **args)


def test_a_detector_of_one_class() -> None:
    with pytest.raises(UsageError, match="would be the background"):
        ZOO["detector"]((3, 32, 32), 1)
