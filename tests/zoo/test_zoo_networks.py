"""Every network of the zoo: shapes, sizes, parameter counts, taps, what it refuses."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from kdcache.errors import UsageError
from kdcache.taps import tap_outputs
from kdcache.zoo import ZOO

OWN_TESTS = {"detector", "fused", "gat", "gcn", "gpt", "segmenter", "tcn"}  # what they take or give is another thing
CLASSIFIERS = sorted(set(ZOO) - OWN_TESTS)
IMAGE_NETWORKS = sorted(set(CLASSIFIERS) - {"mlp"})
LARGE = {"resnet110", "resnet32x4", "resnet56", "resnet44"}
SMALL = sorted(set(IMAGE_NETWORKS) - LARGE - {"vit"})  # sides of any length


def parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def test_the_names_are_sorted_and_all_there() -> None:
    assert list(ZOO) == sorted(ZOO)
    assert set(ZOO) == {
        "mlp",
        "cnn",
        "convnet",
        "detector",
        "fused",
        "gat",
        "gcn",
        "gpt",
        "segmenter",
        "tcn",
        "vit",
        "resnet8",
        "resnet14",
        "resnet20",
        "resnet32",
        "resnet44",
        "resnet56",
        "resnet110",
        "resnet8x4",
        "resnet32x4",
    }


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_logits_of_the_smallest_and_of_grey_images(name: str) -> None:
    for shape in ((8, 8), (1, 8, 8), (3, 8, 8)):
        model = ZOO[name](shape, 7)
        assert model(torch.rand(2, *shape)).shape == (2, 7)


@pytest.mark.parametrize("name", ["mlp", *SMALL])
@pytest.mark.parametrize("shape", [(28, 28), (3, 32, 32), (3, 33, 41), (2, 9, 30)])
def test_logits_over_sizes(name: str, shape: tuple[int, ...]) -> None:
    assert ZOO[name](shape, 10).eval()(torch.rand(3, *shape)).shape == (3, 10)


@pytest.mark.parametrize("shape", [(), (1,), (5,), (2, 3, 4, 5)])
def test_mlp_takes_any_shape(shape: tuple[int, ...]) -> None:
    assert ZOO["mlp"](shape, 3, hidden=[4, 5])(torch.rand(6, *shape)).shape == (6, 3)


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_every_parameter_gets_a_gradient(name: str) -> None:
    model = ZOO[name]((3, 8, 8), 4)
    model(torch.rand(4, 3, 8, 8)).square().sum().backward()
    assert all(p.grad is not None for p in model.parameters())


def test_parameters_of_the_mlp_by_hand() -> None:
    assert parameters(ZOO["mlp"]((28, 28), 10, hidden=[128])) == 784 * 128 + 128 + 128 * 10 + 10 == 101_770
    assert parameters(ZOO["mlp"]((28, 28), 10, hidden=[])) == 7850
    assert parameters(ZOO["mlp"]((28, 28), 10, hidden=[128, 128, 128])) == 101_770 + 2 * (128 * 128 + 128)


def test_parameters_of_the_cnn_by_hand() -> None:
    convolutions = (3 * 32 * 9 + 32) + (32 * 64 * 9 + 64) + (64 * 64 * 9 + 64)
    assert parameters(ZOO["cnn"]((3, 32, 32), 10)) == convolutions + (64 * 8 * 8 * 64 + 64) + (64 * 10 + 10)


def test_parameters_of_the_convnet_by_hand() -> None:
    assert parameters(ZOO["convnet"]((28, 28), 10, widths=[32, 64, 128])) == (
        (9 * 32 + 64) + (32 * 64 * 9 + 128) + (64 * 128 * 9 + 256) + (128 * 10 + 10)
    )


@pytest.mark.parametrize(
    ("name", "millions"),
    [
        ("resnet8", 0.08),
        ("resnet14", 0.17),
        ("resnet20", 0.27),
        ("resnet32", 0.46),
        ("resnet44", 0.66),
        ("resnet56", 0.85),
        ("resnet110", 1.7),
    ],
)
def test_resnets_have_the_papers_number_of_parameters(name: str, millions: float) -> None:
    digits = 2 if millions < 1 else 1
    assert round(parameters(ZOO[name]((3, 32, 32), 10)) / 1e6, digits) == millions


def test_parameters_of_the_resnets_by_hand() -> None:
    stem = 3 * 16 * 9 + 2 * 16
    stage1 = 6 * (16 * 16 * 9 + 2 * 16)
    stage2 = 16 * 32 * 9 + 5 * 32 * 32 * 9 + 6 * 2 * 32
    stage3 = 32 * 64 * 9 + 5 * 64 * 64 * 9 + 6 * 2 * 64
    plain = stem + stage1 + stage2 + stage3 + 64 * 10 + 10
    projections = (16 * 32 + 2 * 32) + (32 * 64 + 2 * 64)
    assert parameters(ZOO["resnet20"]((3, 32, 32), 10)) == plain == 269_722
    assert parameters(ZOO["resnet20"]((3, 32, 32), 10, shortcut="projection")) == plain + projections == 272_474
    # The distillation literature gives 1.23 and 7.43 million for CIFAR-100.
    wide = (
        (3 * 32 * 9 + 64)
        + (32 * 64 + 64 * 64) * 9
        + 256
        + (64 * 128 + 128 * 128) * 9
        + 512
        + (128 * 256 + 256 * 256) * 9
        + 1024
        + (32 * 64 + 128)
        + (64 * 128 + 256)
        + (128 * 256 + 512)
        + 256 * 100
        + 100
    )
    assert parameters(ZOO["resnet8x4"]((3, 32, 32), 100)) == wide == 1_233_540
    assert round(parameters(ZOO["resnet32x4"]((3, 32, 32), 100)) / 1e6, 2) == 7.43


def test_identity_shortcut_subsamples_and_pads_with_zeros() -> None:
    block = ZOO["resnet20"]((3, 8, 8), 10).layer2[0].eval()
    for parameter in block.parameters():
        nn.init.zeros_(parameter)
    x = torch.rand(2, 16, 8, 8)
    y = block(x)
    assert torch.equal(y[:, :16], x[:, :, ::2, ::2])
    assert not y[:, 16:].any()


def test_dropout_of_the_mlp_leaves_evaluation_and_the_weights_names_alone() -> None:
    plain, dropped = ZOO["mlp"]((4,), 3), ZOO["mlp"]((4,), 3, dropout=0.5)
    dropped.load_state_dict(plain.state_dict())
    x = torch.randn(8, 4)
    assert torch.equal(plain.eval()(x), dropped.eval()(x))
    with tap_outputs(dropped.train(), {"a": "layers.0"}) as taps:
        dropped(torch.ones(256, 4))
    kept = (taps["a"] != 0).float().mean() / (plain.layers[0](torch.ones(1, 4)) > 0).float().mean()
    assert 0.48 < kept < 0.52


def test_taps_of_the_mlp_are_after_the_relu() -> None:
    model = ZOO["mlp"]((4,), 3, hidden=[8, 8, 8])
    x = torch.randn(32, 4)
    with tap_outputs(model, {"third": "layers.2"}) as taps:
        logits = model(x)
    hidden = x
    for layer in model.layers:
        hidden = torch.relu(layer[0](hidden))
    assert torch.equal(taps["third"], hidden)
    assert torch.equal(logits, model.head(hidden))


@pytest.mark.parametrize(("name", "widths"), [("resnet20", (16, 32, 64)), ("resnet8x4", (64, 128, 256))])
def test_natural_taps_of_the_resnets(name: str, widths: tuple[int, ...]) -> None:
    model = ZOO[name]((3, 32, 32), 10)
    with tap_outputs(model, {tap: tap for tap in ("layer1", "layer2", "layer3", "pooled")}) as taps:
        logits = model(torch.rand(2, 3, 32, 32))
    for stage, (width, side) in enumerate(zip(widths, (32, 16, 8), strict=True), start=1):
        assert taps[f"layer{stage}"].shape == (2, width, side, side)
        assert (taps[f"layer{stage}"] >= 0).all()
    assert taps["pooled"].shape == (2, widths[-1])
    torch.testing.assert_close(taps["pooled"], taps["layer3"].mean((2, 3)))
    assert torch.equal(logits, model.head(taps["pooled"]))


def test_taps_of_the_convolutional_networks() -> None:
    cnn, convnet = ZOO["cnn"]((28, 28), 10), ZOO["convnet"]((28, 28), 10)
    with tap_outputs(cnn, {"a": "layers.0", "b": "layers.2", "c": "hidden"}) as taps:
        cnn(torch.rand(2, 28, 28))
    assert [tuple(taps[key].shape) for key in "abc"] == [(2, 32, 14, 14), (2, 64, 7, 7), (2, 64)]
    with tap_outputs(convnet, {"a": "stages.0", "b": "stages.2", "c": "pooled"}) as taps:
        convnet(torch.rand(2, 28, 28))
    assert [tuple(taps[key].shape) for key in "abc"] == [(2, 32, 14, 14), (2, 128, 3, 3), (2, 128)]


@pytest.mark.parametrize(
    ("name", "shape", "args", "said"),
    [
        ("resnet20", (3, 3, 9), {}, "smallest input is 4x4 pixels.*this one is 3x9"),
        ("convnet", (7, 7), {}, "smallest input is 8x8 pixels.*this one is 7x7"),
        ("convnet", (8, 8), {"widths": [4, 4, 4, 4]}, "smallest input is 16x16"),
        ("cnn", (3, 3), {}, "smallest input is 4x4"),
        ("cnn", (64,), {}, r"this input has shape \[64\]: zoo:mlp"),
        ("resnet56", (2, 3, 32, 32), {}, "takes images"),
        ("mlp", (4,), {"hidden": 128}, "hidden = 128 must be a list of positive whole"),
        ("mlp", (4,), {"hidden": [0]}, r"hidden = \[0\]"),
        ("mlp", (4,), {"hidden": [True]}, "positive whole"),
        ("mlp", (4,), {"dropout": 1}, "dropout = 1 must be a number from 0 to below 1"),
        ("cnn", (8, 8), {"channels": []}, "a list of 1 or more"),
        ("cnn", (8, 8), {"hidden": [64]}, "one positive whole number"),
        ("convnet", (8, 8), {"widths": [1.5]}, "widths = "),
        ("resnet8x4", (8, 8), {"shortcut": "a"}, "identity"),
    ],
)
def test_what_cannot_be_built(name: str, shape: tuple[int, ...], args: dict[str, object], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        ZOO[name](shape, 10, **args)
