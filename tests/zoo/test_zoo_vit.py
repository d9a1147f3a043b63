"""`zoo:vit`: the distillation token's two heads, taps, sizes, what it refuses."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from kdcache.arrays import Array
from kdcache.errors import UsageError
from kdcache.models import WeightsInfo, build_model, load_model, save_weights
from kdcache.taps import tap_outputs
from kdcache.zoo import ZOO

ARGS = {"patch": 4, "width": 16, "depth": 2, "heads": 2}


@pytest.mark.parametrize("train", [True, False])
def test_with_a_distillation_token_logits_are_the_mean_of_both_heads(train: bool) -> None:
    model = ZOO["vit"]((3, 8, 12), 5, **ARGS, distillation_token=True).train(train)
    outputs = model(torch.rand(3, 3, 8, 12))
    assert list(outputs) == ["logits", "class", "distillation"]
    assert all(tensor.shape == (3, 5) for tensor in outputs.values())
    torch.testing.assert_close(outputs["logits"], (outputs["class"] + outputs["distillation"]) / 2)
    assert not torch.allclose(outputs["class"], outputs["distillation"])
    outputs["class"].sum().backward()
    assert model.distillation_head.weight.grad is None, "the heads are apart"
    assert model.head.weight.grad.any()


@pytest.mark.parametrize("special", [1, 2])
def test_taps_and_parameters_by_hand(special: int) -> None:
    model = ZOO["vit"]((3, 8, 12), 5, **ARGS, distillation_token=special == 2)
    with tap_outputs(model, {"a": "blocks.1", "b": "norm", "c": "pooled"}) as taps:
        outputs = model(torch.rand(2, 3, 8, 12))
    assert taps["a"].shape == taps["b"].shape == (2, special + 6, 16)
    assert torch.equal(taps["c"], taps["b"][:, 0])
    logits = outputs if special == 1 else outputs["class"]
    assert torch.equal(logits, model.head(taps["c"]))
    block = 2 * 2 * 16 + (16 * 48 + 48) + (16 * 16 + 16) + (8 * 16 * 16 + 5 * 16)
    tokens = special * 16 + (special + 6) * 16
    assert sum(p.numel() for p in model.parameters()) == (
        (3 * 16 * 16 + 16) + tokens + 2 * block + 2 * 16 + special * (16 * 5 + 5)
    )


def test_places_matter_and_every_parameter_gets_a_gradient() -> None:
    model = ZOO["vit"]((8, 8), 3, **ARGS).eval()
    x = torch.rand(1, 8, 8)
    assert not torch.allclose(model(x), model(x.roll(4, dims=2)), atol=1e-6)
    model(torch.rand(4, 8, 8)).square().sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in model.parameters())


def test_weights_come_back(tmp_path: Path) -> None:
    array, args = Array("uint8", (3, 8, 8)), {**ARGS, "distillation_token": True}
    model = build_model("zoo:vit", args, input=array, outputs=4)
    save_weights(tmp_path / "w", model, WeightsInfo("zoo:vit", args, array, 4))
    x = torch.rand(2, 3, 8, 8)
    again = load_model(tmp_path / "w")[0].eval()(x)
    assert all(torch.equal(again[name], tensor) for name, tensor in model.eval()(x).items())


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ({"patch": 3}, "patch = 3 must divide both sides of the image, 8x8"),
        ({"width": 10, "heads": 4}, "width = 10 must be a multiple of its heads = 4"),
        ({"depth": 0}, "depth = 0"),
        ({"distillation_token": 1}, "distillation_token = 1 must be true or false"),
        ({"dropout": -0.1}, "dropout = -0.1"),
    ],
)
def test_what_cannot_be_built(args: dict[str, object], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        ZOO["vit"]((8, 8), 3, **args)
