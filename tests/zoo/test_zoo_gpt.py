"""`zoo:gpt`: packed documents are worlds of their own, the future is not seen, sizes, what it refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from kdcache.arrays import Array
from kdcache.errors import UsageError
from kdcache.models import WeightsInfo, is_language_model, is_tokens, load_model, save_weights
from kdcache.taps import tap_outputs
from kdcache.zoo import ZOO
from kdcache.zoo.gpt import GPT
from kdcache.zoo.reference import build_model
from kdcache.zoo.sequence import attention_mask, positions

L, V = 12, 50
VARIANTS = [(place, causal) for place in ("rotary", "learned") for causal in (True, False)]


def network(**args: Any) -> GPT:
    """A small one, in evaluation mode, with weights large enough that every part matters."""
    torch.manual_seed(0)
    model = ZOO["gpt"]((L,), V, **{"width": 16, "layers": 2, "heads": 2, **args}).eval().double()
    assert isinstance(model, GPT)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(5)
    return model


def rows(count: int = 2, seed: int = 1) -> torch.Tensor:
    return torch.randint(V, (count, L), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("place", "causal"), VARIANTS)
@settings(max_examples=15, deadline=None)
@given(st.lists(st.integers(1, 6), min_size=1, max_size=6))
def test_a_packed_document_is_as_it_is_alone(place: str, causal: bool, lengths: list[int]) -> None:
    model, tokens = network(positions=place, causal=causal), rows(1)
    numbers = [n for n, length in enumerate(lengths) for _ in range(length)]
    segment = torch.tensor([(numbers + L * [len(lengths)])[:L]])
    with torch.no_grad():
        packed = model.hidden(tokens, segment)[0]
        alone = [model.hidden(tokens[:, segment[0] == number])[0] for number in segment.unique()]
    torch.testing.assert_close(packed, torch.cat(alone), atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize(("place", "causal"), VARIANTS)
def test_one_segment_is_the_same_with_and_without_its_numbers(place: str, causal: bool) -> None:
    model, tokens = network(positions=place, causal=causal), rows()
    with torch.no_grad():
        torch.testing.assert_close(model.hidden(tokens), model.hidden(tokens, torch.full_like(tokens, 3)))


@pytest.mark.parametrize("segmented", [True, False])
def test_only_a_causal_one_does_not_see_the_future(segmented: bool) -> None:
    tokens, changed = rows(1), rows(1)
    changed[0, 7] = (changed[0, 7] + 1) % V
    segment = torch.zeros_like(tokens) if segmented else None
    with torch.no_grad():
        for causal in (True, False):
            model = network(causal=causal)
            moved = (model(tokens, segment) - model(changed, segment)).abs().amax(2)[0] > 1e-9
            assert moved.tolist() == [not causal or t >= 7 for t in range(L)]


@pytest.mark.parametrize("place", ["rotary", "learned"])
def test_order_matters(place: str) -> None:
    model, tokens = network(positions=place, causal=False), rows(1)
    with torch.no_grad():
        assert not torch.allclose(model(tokens)[0].flip(0), model(tokens.flip(1))[0])


def test_positions_and_mask_by_hand() -> None:
    segment = torch.tensor([[0, 0, 0, 1, 2, 2], [4, 4, 4, 4, 4, 4]])
    assert positions(segment).tolist() == [[0, 1, 2, 0, 0, 1], [0, 1, 2, 3, 4, 5]]
    mask = attention_mask(segment, causal=True)
    assert mask.shape == (2, 1, 6, 6)
    assert mask[0, 0].int().tolist() == [
        [1, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0],
        [0, 0, 0, 1, 0, 0],
        [0, 0, 0, 0, 1, 0],
        [0, 0, 0, 0, 1, 1],
    ]
    assert attention_mask(segment, causal=False)[0, 0].sum().item() == 9 + 1 + 4
    assert mask[1, 0].sum().item() == 21


def test_it_keeps_the_contract() -> None:
    model, tokens = network(), rows()
    assert is_language_model(model)
    assert not is_language_model(ZOO["mlp"]((3,), 2))
    assert not is_language_model(ZOO["cnn"]((8, 8), 2)), "its `hidden` is a module, not a method"
    assert is_tokens(Array("int32", (L,)))
    assert not is_tokens(Array("int64", (L,)))
    with torch.no_grad(), tap_outputs(model, {"a": "blocks.1", "b": "norm"}) as taps:
        logits = model(tokens)
    assert torch.equal(logits, model.head(model.hidden(tokens)))
    assert logits.shape == (2, L, V)
    assert taps["a"].shape == taps["b"].shape == (2, L, 16)
    assert torch.equal(taps["b"], model.hidden(tokens))


def test_parameters_by_hand() -> None:
    width, layers = 16, 2
    block = 2 * 2 * width + (width * 3 * width + 3 * width) + (width * width + width) + (8 * width**2 + 5 * width)
    body = V * width + layers * block + 2 * width
    for args, expected in (
        ({}, body),
        ({"tied": False}, body + V * width),
        ({"positions": "learned"}, body + L * width),
    ):
        assert sum(p.numel() for p in network(**args).parameters()) == expected


def test_weights_stay_tied_through_files_and_moves(tmp_path: Path) -> None:
    args = {"width": 16, "layers": 1, "heads": 2}
    array = Array("int32", (L,))
    model = build_model("zoo:gpt", args, input=array, outputs=V)
    assert model.training
    save_weights(tmp_path / "w.safetensors", model, WeightsInfo("zoo:gpt", args, array, V))
    loaded, info = load_model(tmp_path / "w.safetensors")
    assert info.outputs == V
    for network in (loaded, loaded.double(), loaded.to_empty(device="cpu")):
        assert isinstance(network, GPT)
        assert network.head.weight is network.embedding.weight
    assert load_model(tmp_path / "w.safetensors")[0].state_dict().keys() == model.state_dict().keys()


def test_it_learns_a_pattern_and_every_parameter_gets_a_gradient() -> None:
    torch.manual_seed(0)
    model = ZOO["gpt"]((L,), V, width=32, layers=1, heads=2, dropout=0.1, tied=False, positions="learned")
    tokens = (torch.arange(64)[:, None] * 3 + torch.arange(L)) % V
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(40):
        loss = nn.functional.cross_entropy(model(tokens)[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert all(p.grad is not None and p.grad.any() for p in model.parameters())
    assert loss.item() < 0.5


@pytest.mark.parametrize(
    ("shape", "args", "said"),
    [
        ((3, 8, 8), {}, r"takes rows of tokens \[L\]; this input has shape \[3, 8, 8\]"),
        ((8,), {"layers": 0}, "layers = 0 must be one positive whole number"),
        ((8,), {"width": True}, "width = True"),
        ((8,), {"width": 20, "heads": 4}, "width = 20 must be a multiple of twice its heads = 4"),
        ((8,), {"dropout": 1.0}, "dropout = 1.0 must be a number from 0 to below 1"),
        ((8,), {"positions": "none"}, 'positions = \'none\' must be "rotary" or "learned"'),
        ((8,), {"tied": 1}, "tied = 1 must be true or false"),
    ],
)
def test_what_cannot_be_built(shape: tuple[int, ...], args: dict[str, object], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        ZOO["gpt"](shape, V, **args)


def test_inputs_that_are_no_tokens() -> None:
    with pytest.raises(UsageError, match=r"is a language model, which takes rows of token ids int32 \[L\]; .*float32"):
        build_model("zoo:gpt", {}, input=Array("float32", (8,)), outputs=V)
