"""`zoo:fused`: facts concatenated or added, left out in training, and several heads."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from kdcache.arrays import Array
from kdcache.errors import UsageError
from kdcache.models import WeightsInfo, build_model, load_model, save_weights
from kdcache.taps import tap_outputs
from kdcache.zoo import ZOO

IMAGE, FACT = Array("uint8", (3, 8, 8)), Array("float32", (5,))
BASE = {"base": "convnet", "args": {"widths": [4, 6]}}


def built(*extra: Array, **args: object) -> torch.nn.Module:
    torch.manual_seed(0)
    return build_model("zoo:fused", {**BASE, **args}, input=IMAGE, outputs=3, extra=extra)


@pytest.mark.parametrize("how", ["concatenate", "add"])
def test_facts_by_hand(how: str) -> None:
    model = built(FACT, how=how).eval()
    x, fact = torch.rand(4, 3, 8, 8), torch.randn(4, 5)
    with tap_outputs(model, {"pooled": "base.pooled", "features": "features"}) as taps:
        logits = model(x, fact)
    pooled = taps["pooled"]
    assert pooled.shape == (4, 6)
    wanted = torch.cat([pooled, fact], 1) if how == "concatenate" else pooled + model.embedding(fact)
    torch.testing.assert_close(taps["features"], wanted)
    torch.testing.assert_close(logits, model.head(wanted))
    assert torch.equal(model(x), model(x, torch.zeros(4, 5))), "without facts none are known"
    assert not torch.equal(model(x), logits)
    logits.square().sum().backward()
    assert all(p.grad is not None for p in model.parameters())


def test_several_facts_stand_side_by_side() -> None:
    model = built(Array("float16", (2,)), Array("uint8", ())).eval()
    x = torch.rand(4, 3, 8, 8)
    found = model(x, torch.ones(4, 2).half(), torch.tensor([0, 1, 2, 3]))
    assert model.head.in_features == 6 + 3
    with tap_outputs(model, {"features": "features"}) as taps:
        model(x, torch.ones(4, 2).half(), torch.tensor([0, 1, 2, 3]))
    assert taps["features"][:, 6:].tolist() == [[1, 1, 0], [1, 1, 1], [1, 1, 2], [1, 1, 3]]
    assert found.shape == (4, 3)


def test_facts_are_dropped_in_training_alone() -> None:
    model = built(FACT, drop=0.25)
    x, fact = torch.rand(2000, 3, 8, 8), torch.ones(2000, 5)
    with tap_outputs(model, {"features": "features"}) as taps:
        model(x, fact)
        known = taps["features"][:, 6:]
        assert set(known.sum(1).tolist()) == {0.0, 5.0}, "of a sample all or none"
        assert 0.71 < known.mean() < 0.79
        model.eval()(x, fact)
        assert (taps["features"][:, 6:] == 1).all()


def test_several_heads_on_the_same_features() -> None:
    model = built(heads={"coarse": 2, "colour": 4})
    x = torch.rand(4, 3, 8, 8)
    with tap_outputs(model, {"features": "features"}) as taps:
        outputs = model(x)
    assert {name: tuple(tensor.shape) for name, tensor in outputs.items()} == {
        "logits": (4, 3),
        "coarse": (4, 2),
        "colour": (4, 4),
    }
    torch.testing.assert_close(outputs["colour"], model.heads["colour"](taps["features"]))
    assert isinstance(built()(x), torch.Tensor)


@pytest.mark.parametrize("base", ["cnn", "mlp", "resnet8", "vit"])
def test_every_classifier_can_be_the_base(base: str) -> None:
    model = ZOO["fused"]((3, 8, 8), 3, [(5,)], base=base)
    assert model(torch.rand(2, 3, 8, 8), torch.rand(2, 5)).shape == (2, 3)


def test_without_facts_and_heads_it_is_the_base_network() -> None:
    fused, base = built().eval(), build_model("zoo:convnet", BASE["args"], input=IMAGE, outputs=3).eval()
    weights = {name.removeprefix("base."): tensor for name, tensor in fused.state_dict().items()}
    base.load_state_dict(weights)
    x = torch.rand(4, 3, 8, 8)
    assert torch.equal(fused(x), base(x))


def test_weights_come_back(tmp_path: Path) -> None:
    args = {**BASE, "how": "add", "heads": {"coarse": 2}}
    model = build_model("zoo:fused", args, input=IMAGE, outputs=3, extra=[FACT])
    info = WeightsInfo("zoo:fused", args, IMAGE, 3, others=(FACT,))
    save_weights(tmp_path / "w", model, info)
    again, told = load_model(tmp_path / "w")
    assert told == info
    x, fact = torch.rand(2, 3, 8, 8), torch.rand(2, 5)
    found, wanted = again.eval()(x, fact), model.eval()(x, fact)
    assert all(torch.equal(found[name], wanted[name]) for name in ("logits", "coarse"))


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ({"base": "convnett"}, "did you mean 'convnet'"),
        ({"base": "fused"}, "base = 'fused'"),
        ({"base": "detector", "args": {"stride": 2, "widths": [4]}}, "no single head"),
        ({"base": "vit", "args": {"distillation_token": True}}, "no single head"),
        ({"base": "mlp", "args": {"hiden": [3]}}, "did you mean 'hidden'"),
        ({"base": "mlp", "args": {"num_classes": 3}}, "without any that the data gives"),
        ({**BASE, "how": "multiply"}, "how = 'multiply' must be"),
        ({**BASE, "drop": 1}, "drop = 1 must be"),
        ({**BASE, "heads": {"logits": 3}}, "other than logits"),
        ({**BASE, "heads": {"a.b": 3}}, "heads = "),
        ({**BASE, "heads": {"a": 0}}, "heads = "),
        ({}, "base"),
    ],
)
def test_what_cannot_be_built(args: dict[str, object], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        build_model("zoo:fused", args, input=IMAGE, outputs=3)
