"""Taps: what they read, that they leave nothing behind, and what they refuse."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from kdcache.errors import UsageError
from kdcache.taps import pool_spatial, tap_outputs


class Odd(nn.Module):
    """Changes a module's output in place, skips a module at will, and has modules with odd outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.relu = nn.ReLU(inplace=True)
        self.second = nn.Linear(4, 4)
        self.lstm = nn.LSTM(4, 3, batch_first=True)
        self.skip = False

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.relu(self.first(x))
        self.lstm(x[:, None])
        return y if self.skip else self.second(y)


def hooks(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def test_outputs_before_later_modules_change_them_in_place() -> None:
    model, x = Odd(), torch.randn(16, 4)
    with tap_outputs(model, {"a": "first", "b": "relu"}) as taps, torch.inference_mode():
        model(x)
    assert torch.equal(taps["a"], model.first(x))
    assert (taps["a"] < 0).any()
    assert torch.equal(taps["b"], torch.relu(model.first(x)))
    assert list(taps) == ["a", "b"]


def test_filled_anew_at_every_forward_pass_and_gradients_flow() -> None:
    model = Odd()
    with tap_outputs(model, {"a": "relu"}) as taps:
        model(torch.randn(2, 4))
        first = taps["a"]
        model(torch.randn(5, 4))
        assert taps["a"].shape == (5, 4)
        assert first.shape == (2, 4)
        taps["a"].sum().backward()
    assert model.first.weight.grad is not None


def test_hooks_are_gone_afterwards_also_after_an_error() -> None:
    model = Odd()
    with pytest.raises(RuntimeError, match="shapes"), tap_outputs(model, {"a": "relu", "b": "first"}):
        model(torch.randn(2, 3))
    assert hooks(model) == 0
    with tap_outputs(model, {"a": "relu", "b": "first"}):
        assert hooks(model) == 4
    assert hooks(model) == 0
    with tap_outputs(model, {}) as taps:
        assert hooks(model) == 0
        model(torch.randn(2, 4))
    assert taps == {}


def test_the_first_tensor_of_a_tuple() -> None:
    model = Odd()
    with tap_outputs(model, {"a": "lstm"}) as taps:
        model(torch.randn(2, 4))
    assert taps["a"].shape == (2, 1, 3)


def test_a_dict_output_gives_its_first_tensor_and_no_tensor_is_an_error() -> None:
    class Given(nn.Module):
        output: object = None

        def forward(self, x: Tensor) -> object:
            return self.output

    model = nn.Sequential(Given())
    with tap_outputs(model, {"a": "0"}) as taps:
        model[0].output = {"loss": None, "logits": torch.ones(3)}
        model(torch.zeros(1))
        assert torch.equal(taps["a"], torch.ones(3))
        model[0].output = "text"
        with pytest.raises(UsageError, match=r"tap a = '0': its output is a str"):
            model(torch.zeros(1))


def test_unknown_paths() -> None:
    with (
        pytest.raises(UsageError, match=r"tap f = 'frist': Odd has no such module; did you mean 'first'"),
        tap_outputs(Odd(), {"f": "frist"}),
    ):
        pass
    with pytest.raises(UsageError, match="has no such module"), tap_outputs(Odd(), {"f": ""}):
        pass


def test_a_module_that_does_not_run_is_an_error_and_never_a_stale_output() -> None:
    model = Odd()
    with tap_outputs(model, {"a": "second"}) as taps:
        model(torch.randn(2, 4))
        model.skip = True
        with pytest.raises(UsageError, match="did not run"):
            model(torch.randn(2, 4))
        assert taps == {}


def test_pool_spatial() -> None:
    x = torch.arange(24.0).reshape(1, 2, 3, 4)
    assert pool_spatial(x).tolist() == [[5.5, 17.5]]
    assert pool_spatial(x.reshape(1, 2, 12)).tolist() == [[5.5, 17.5]]
    for same in (torch.rand(3, 4), torch.rand(3)):
        assert pool_spatial(same) is same
