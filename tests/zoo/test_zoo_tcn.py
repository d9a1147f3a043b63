"""`zoo:tcn`: shapes, how far it sees back, that it can forecast, what it refuses."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from kdcache.arrays import Array
from kdcache.errors import UsageError
from kdcache.models import WeightsInfo, build_model, load_model, save_weights
from kdcache.taps import tap_outputs
from kdcache.zoo import ZOO


@pytest.mark.parametrize("shape", [(30,), (1, 30), (4, 30)])
def test_values_and_taps(shape: tuple[int, ...]) -> None:
    model = ZOO["tcn"](shape, 7, width=6, depth=3)
    with tap_outputs(model, {"a": "blocks.0", "b": "blocks.2", "c": "pooled"}) as taps:
        values = model(torch.rand(5, *shape))
    assert values.shape == (5, 7)
    assert taps["a"].shape == taps["b"].shape == (5, 6, 30)
    assert torch.equal(taps["c"], taps["b"][:, :, -1])
    values.square().sum().backward()
    assert all(p.grad is not None for p in model.parameters())


def test_it_sees_as_far_back_as_it_says_and_no_block_sees_ahead() -> None:
    torch.manual_seed(0)
    model = ZOO["tcn"]((40,), 1, width=16, depth=3, kernel=2).double()
    x = torch.rand(1, 40, dtype=torch.double, requires_grad=True)
    (gradient,) = torch.autograd.grad(model(x).sum(), x)
    back = 1 + 2 * 1 * (2**3 - 1)
    assert gradient[0].nonzero().min() == 40 - back
    with tap_outputs(model, {"a": "blocks.2"}) as taps:
        model(x)
    (gradient,) = torch.autograd.grad(taps["a"][0, :, 20].sum(), x)
    assert gradient[0, :21].any()
    assert not gradient[0, 21:].any()


def test_it_learns_to_go_on_with_a_wave_and_comes_back_from_its_file(tmp_path: Path) -> None:
    torch.manual_seed(0)
    array = Array("float32", (24,))
    model = build_model("zoo:tcn", {"width": 12, "depth": 3}, input=array, outputs=4)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(150):
        wave = (torch.arange(28) * 0.5 + 6.3 * torch.rand(64, 1)).sin()
        loss = (model(wave[:, :24]) - wave[:, 24:]).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.05, "the wave's own variance is 0.5"
    save_weights(tmp_path / "w", model, WeightsInfo("zoo:tcn", {"width": 12, "depth": 3}, array, 4))
    assert torch.equal(load_model(tmp_path / "w")[0](wave[:, :24]), model(wave[:, :24]))


@pytest.mark.parametrize(
    ("shape", "args", "said"),
    [
        ((), {}, "takes windows"),
        ((3, 8, 8), {}, "takes windows"),
        ((8,), {"width": 0}, "width = 0"),
        ((8,), {"depth": 40}, "depth = 40 would see"),
        ((8,), {"dropout": 2}, "dropout = 2"),
    ],
)
def test_what_cannot_be_built(shape: tuple[int, ...], args: dict[str, object], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        ZOO["tcn"](shape, 3, **args)
