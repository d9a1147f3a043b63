"""References: zoo:NAME, timm:NAME, hf:NAME, package.module:factory, and everything that can be wrong with them."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from kdcache.arrays import Array
from kdcache.errors import MissingExtra, UsageError
from kdcache.models import build_model
from kdcache.near_misses import near_misses
from kdcache.zoo import ZOO

GREY = Array("uint8", (8, 8))
COLOUR = Array("uint8", (3, 32, 32))

FACTORIES = """
import torch
from torch import nn

def told(input_shape, num_classes, width=4):
    return nn.Sequential(nn.Flatten(), nn.Linear(input_shape[0] * input_shape[1], width), nn.Linear(width, num_classes))

def untold(classes=3):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, classes))

def wild(**args):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, args["classes"]))

def no_network():
    return "a string"

def two_outputs(num_classes):
    class Two(nn.Module):
        def forward(self, x):
            return x, x
    return Two()

class Named(nn.Module):
    def __init__(self, width, outputs):
        super().__init__()
        self.outputs = outputs
        self.layer = nn.Linear(64, width)

    def forward(self, x, *more):
        x = self.layer(x.flatten(1))
        self.seen = [(tuple(one.shape), one.dtype) for one in more]
        return {name: x if kind == "x" else x[:1] if kind == "short" else kind for name, kind in self.outputs.items()}

def named(outputs, num_classes=10, extra_shapes=()):
    model = Named(num_classes, outputs)
    model.extra_shapes = extra_shapes
    return model

def dense(num_classes, places=5):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, places * num_classes), nn.Unflatten(1, (places, num_classes)))

def broken():
    raise KeyError("inside")

def drops():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10), nn.Dropout(0.5), nn.BatchNorm1d(10))

NOT_CALLABLE = 3
"""


@pytest.fixture
def factories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "own_networks.py").write_text(FACTORIES)
    (tmp_path / "broken_networks.py").write_text("import no_such_thing_at_all\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield "own_networks"
    sys.modules.pop("own_networks", None)


@pytest.mark.parametrize("name", sorted(set(ZOO) - {"detector", "fused", "gat", "gcn", "gpt", "segmenter", "tcn"}))
def test_zoo(name: str) -> None:
    model = build_model(f"zoo:{name}", {}, input=GREY, outputs=10)
    assert model.training
    assert model(torch.rand(2, 8, 8)).shape == (2, 10)


def test_arguments_reach_the_factory() -> None:
    model = build_model("zoo:mlp", {"hidden": [5, 6]}, input=GREY, outputs=2)
    assert [tuple(p.shape) for p in model.parameters()] == [(5, 64), (5,), (6, 5), (6,), (2, 6), (2,)]


def test_equal_seeds_give_equal_weights_and_the_check_draws_nothing(factories: str) -> None:
    def built() -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        torch.manual_seed(3)
        return build_model("own_networks:drops", {}, input=GREY, outputs=10).state_dict(), torch.rand(3)

    (first, after_first), (second, after_second) = built(), built()
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert torch.equal(after_first, after_second)
    torch.manual_seed(3)
    torch.nn.Linear(64, 10)
    assert torch.equal(after_first, torch.rand(3))
    assert not first["3.num_batches_tracked"].any()  # the check leaves batch statistics alone


@pytest.mark.parametrize(
    ("reference", "args"),
    [
        ("own_networks:told", {}),
        ("own_networks:told", {"width": 9}),
        ("own_networks:untold", {"classes": 10}),
        ("own_networks:wild", {"classes": 10}),
    ],
)
def test_own_factories(factories: str, reference: str, args: dict[str, Any]) -> None:
    assert build_model(reference, args, input=GREY, outputs=10)(torch.rand(4, 8, 8)).shape == (4, 10)


@pytest.mark.parametrize(
    ("reference", "args", "said"),
    [
        ("zoo:cmm", {}, "zoo:cmm: no such network; .*known: cnn, convnet, detector"),
        ("zoo:convnett", {}, "did you mean 'convnet'.*known: cnn, convnet, detector"),
        ("zoo:transformer9000", {}, "known: cnn"),
        ("mlp", {}, "must be written zoo:NAME.*did you mean 'mlp'"),
        ("zoo:", {}, "must be written"),
        ("", {}, "must be written"),
        ("zoo:mlp", {"hiden": [3]}, "unknown argument 'hiden'.*did you mean 'hidden'"),
        ("zoo:mlp", {"num_classes": 3}, "num_classes comes from the data"),
        ("zoo:mlp", {"hidden": [1 << 60, 1 << 60]}, "cannot be built with args"),
        ("zoo:resnet20", {"depth": 3}, "unknown argument 'depth'.*shortcut"),
        ("zo:mlp", {}, "cannot be imported.*did you mean 'zoo'"),
        ("no_such_module:factory", {}, "no_such_module cannot be imported.*PYTHONPATH"),
        ("broken_networks:factory", {}, "no_such_thing_at_all"),
        ("own_networks:tolt", {}, "did you mean 'told'"),
        ("own_networks:NOT_CALLABLE", {}, "no such function"),
        ("own_networks:told", {"widht": 3}, "did you mean 'width'"),
        ("own_networks:no_network", {}, "gives a str, not a torch.nn.Module"),
        ("own_networks:two_outputs", {}, "gives a tuple, not a tensor of logits or a mapping"),
        ("own_networks:named", {"outputs": {"a": "x", "b": "x"}}, 'its outputs are a, b; one must be "logits"'),
        (
            "own_networks:named",
            {"outputs": {"logits": "x", "b": "short"}},
            r"its output 'b' is \[1, 10\] for 2 samples",
        ),
        ("own_networks:named", {"outputs": {"logits": "x", "b": 3}}, "its output 'b' is a int for 2 samples"),
        ("own_networks:named", {"outputs": {"logits": "x"}, "num_classes": 4}, r"gives \[2, 4\] for 2 samples of 10"),
        ("own_networks:broken", {}, "KeyError: 'inside'"),
        ("own_networks:untold", {}, r"gives \[2, 3\] for 2 samples of 10 outputs, where \[2, 10\]"),
    ],
)
def test_what_cannot_be_built(factories: str, reference: str, args: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        build_model(reference, args, input=GREY, outputs=10)


def test_input_that_the_network_cannot_take(factories: str) -> None:
    with pytest.raises(UsageError, match=r"cannot take inputs of shape \[9, 9\]"):
        build_model("own_networks:untold", {"classes": 10}, input=Array("uint8", (9, 9)), outputs=10)
    with pytest.raises(UsageError, match="at least one class"):
        build_model("zoo:mlp", {}, input=GREY, outputs=0)


@pytest.mark.parametrize(
    ("reference", "library", "extra"), [("timm:resnet18", "timm", "timm"), ("hf:vit", "transformers", "hf")]
)
def test_absent_library_says_how_to_get_it(reference: str, library: str, extra: str) -> None:
    if importlib.util.find_spec(library):
        pytest.skip(f"{library} is installed here")
    with pytest.raises(MissingExtra, match=rf"kdcache\[{extra}\]"):
        build_model(reference, {}, input=COLOUR, outputs=10)


def test_further_inputs_come_as_they_are_stored(factories: str) -> None:
    extra = [Array("float32", (5,)), Array("uint8", ()), Array("float16", (2, 3)), Array("int64", (4,))]
    args = {"outputs": {"logits": "x", "more": "x"}}
    model = build_model("own_networks:named", args, input=GREY, outputs=10, extra=extra)
    assert model.extra_shapes == ((5,), (), (2, 3), (4,))
    assert model.seen == [
        ((2, 5), torch.float32),
        ((2,), torch.long),
        ((2, 2, 3), torch.float16),
        ((2, 4), torch.long),
    ]
    with pytest.raises(UsageError, match=r"zoo:mlp cannot take inputs of shape \[8, 8\] and \[5\]"):
        build_model("zoo:mlp", {}, input=GREY, outputs=10, extra=extra[:1])


def test_logits_of_many_places(factories: str) -> None:
    assert build_model("own_networks:dense", {}, input=GREY, outputs=3)(torch.rand(4, 8, 8)).shape == (4, 5, 3)


def test_a_language_model_where_a_row_has_one_label() -> None:
    array = Array("int32", (8,))
    for positions in (0, 7):
        build_model("zoo:gpt", {"width": 8, "heads": 2}, input=array, outputs=9, positions=positions)
    with pytest.raises(UsageError, match=r"zoo:gpt is a language model, which judges every token.*one label"):
        build_model("zoo:gpt", {"width": 8, "heads": 2}, input=array, outputs=9, positions=None)


def test_near_misses() -> None:
    assert near_misses("mpl", ["mlp", "cnn"]) == "did you mean 'mlp'? known: cnn, mlp"
    assert near_misses("x", []) == "there are none"
    assert near_misses("zzz", map(str, range(30))).endswith("and 18 more")


def test_timm() -> None:
    pytest.importorskip("timm")
    model = build_model("timm:resnet10t", {}, input=COLOUR, outputs=5)
    assert model(torch.rand(2, 3, 32, 32)).shape == (2, 5)
    grey = build_model("timm:resnet10t", {"drop_rate": 0.1}, input=Array("uint8", (32, 32)), outputs=5)
    assert grey(torch.rand(2, 32, 32)).shape == (2, 5)
    for reference, args, said in (
        ("timm:resnet10tt", {}, "did you mean 'resnet10t'"),
        ("timm:resnet10t", {"num_classes": 3}, "from the data"),
        ("timm:resnet10t", {"no_such": 3}, "no_such"),
        ("timm:resnet10t", {"checkpoint_path": "x"}, "safetensors"),
        ("timm:vit_tiny_patch16_224", {}, "cannot take inputs"),
        ("timm:hf-hub:a/b", {}, "no such model"),
    ):
        with pytest.raises(UsageError, match=said):
            build_model(reference, args, input=COLOUR, outputs=5)


def test_hf(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    args = {
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 16,
        "patch_size": 8,
    }
    model = build_model("hf:vit", args, input=COLOUR, outputs=5)
    x = torch.rand(2, 3, 32, 32)
    assert model(x).shape == (2, 5)
    grey = build_model("hf:vit", args, input=Array("uint8", (32, 32)), outputs=5)
    assert grey(torch.rand(2, 32, 32)).shape == (2, 5)
    model.save_pretrained(tmp_path / "vit")
    again = build_model(f"hf:{tmp_path / 'vit'}", {}, input=COLOUR, outputs=5)
    assert torch.equal(again.eval()(x), model.eval()(x))
    for reference, wrong, said in (
        ("hf:vitt", {}, "did you mean 'vit'"),
        ("hf:vit", {"hiden_size": 3}, "did you mean 'hidden_size'"),
        ("hf:google/nothing", {}, "neither a local folder"),
        (f"hf:{tmp_path}", {}, "cannot be built"),
    ):
        with pytest.raises(UsageError, match=said):
            build_model(reference, wrong, input=COLOUR, outputs=5)
