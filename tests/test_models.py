"""Input scaling and weights files, good and hostile."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import safetensors
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import nn

from kdcache.arrays import Array
from kdcache.errors import CheckpointError, StorageError, TrustError, UsageError
from kdcache.models import (
    InputSpec,
    WeightsInfo,
    apply_weights,
    build_model,
    load_model,
    load_weights,
    partial_weights,
    save_weights,
    weights_digest,
)

INPUT = Array("uint8", (3, 8, 8))
GOOD: dict[str, Any] = {
    "model": "zoo:mlp",
    "args": {"hidden": [4]},
    "input": {"dtype": "uint8", "shape": [2, 3]},
    "outputs": 3,
    "input_spec": {"mean": [1.5], "std": [2.0]},
    "extra": {},
}


def info(model: str = "zoo:resnet8x4", **args: Any) -> WeightsInfo:
    return WeightsInfo(model, args, INPUT, 10, InputSpec((1.0, 2.0, 3.0), (4.0, 5.0, 6.0)), {"stores": ["abc"]})


def mlp_tensors() -> dict[str, torch.Tensor]:
    return build_model("zoo:mlp", {"hidden": [4]}, input=Array("uint8", (2, 3)), outputs=3).state_dict()


# InputSpec


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.bool])
def test_integers_are_standardised_per_channel(dtype: torch.dtype) -> None:
    x = torch.randint(0, 2 if dtype is torch.bool else 127, (5, 3, 4, 4)).to(dtype)
    spec = InputSpec((1.0, 2.0, 3.0), (4.0, 5.0, 6.0))
    y = spec.apply(x)
    assert y.dtype == torch.float32
    for channel in range(3):
        wanted = (x[:, channel].double() - (1.0 + channel)) / (4.0 + channel)
        torch.testing.assert_close(y[:, channel].double(), wanted, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("shape", [(2, 7), (2, 4, 4), (2, 3, 4, 4), (2,)])
def test_one_value_serves_every_shape(shape: tuple[int, ...]) -> None:
    x = torch.randint(0, 256, shape, dtype=torch.uint8)
    assert torch.equal(InputSpec((10.0,), (4.0,)).apply(x), (x.float() - 10) / 4)


def test_floats_pass_and_no_statistics_leave_the_values() -> None:
    x = torch.rand(2, 3, 4, 4)
    assert InputSpec((9.0,), (9.0,)).apply(x) is x
    assert torch.equal(InputSpec().apply(torch.tensor([[3, 4]])), torch.tensor([[3.0, 4.0]]))
    assert InputSpec().apply(x.double()).dtype == torch.float32


def test_constants_made_in_inference_mode_serve_training() -> None:
    spec, x = InputSpec((7.25,), (3.5,)), torch.ones(2, 3, dtype=torch.uint8)
    with torch.inference_mode():
        spec.apply(x)
    layer = nn.Linear(3, 1)
    layer(spec.apply(x)).sum().backward()
    assert layer.weight.grad is not None


@pytest.mark.parametrize(
    ("mean", "std"),
    [
        ((1.0,), None),
        (None, (1.0,)),
        ((), ()),
        ((1.0, 2.0), (1.0,)),
        ((1.0,), (0.0,)),
        ((1.0,), (-1.0,)),
        ((float("nan"),), (1.0,)),
        ((1.0,), (float("inf"),)),
    ],
)
def test_unusable_statistics(mean: Any, std: Any) -> None:
    with pytest.raises(UsageError, match="input: "):
        InputSpec(mean, std)


def test_statistics_of_other_channels() -> None:
    with pytest.raises(UsageError, match=r"mean has 3 values.*1 channels"):
        InputSpec((1.0,) * 3, (1.0,) * 3).apply(torch.zeros(2, 8, 8, dtype=torch.uint8))
    with pytest.raises(UsageError, match=r"mean has 2 values.*3 channels"):
        InputSpec((1.0,) * 2, (1.0,) * 2).apply(torch.zeros(2, 3, 8, 8, dtype=torch.uint8))


# Weights files


@pytest.mark.parametrize("name", ["mlp", "cnn", "convnet", "resnet8x4", "resnet20"])
def test_what_was_saved_comes_back_bit_for_bit(name: str, tmp_path: Path) -> None:
    model = build_model(f"zoo:{name}", {}, input=INPUT, outputs=10)
    model(torch.rand(4, *INPUT.shape))  # moves the batch statistics
    path = tmp_path / "model.safetensors"
    save_weights(path, model, info(f"zoo:{name}"))
    again, told = load_model(path)
    assert told == info(f"zoo:{name}")
    assert list(again.state_dict()) == list(model.state_dict())
    for key, tensor in model.state_dict().items():
        assert torch.equal(again.state_dict()[key], tensor)
        assert again.state_dict()[key].dtype == tensor.dtype
    x = torch.rand(2, *INPUT.shape)
    assert torch.equal(again.eval()(x), model.eval()(x))
    assert all(p.requires_grad and p.device.type == "cpu" for p in again.parameters())


def test_equal_weights_give_equal_bytes_and_nothing_is_left_beside_them(tmp_path: Path) -> None:
    model = build_model("zoo:resnet8x4", {}, input=INPUT, outputs=10)
    one, two = tmp_path / "one", tmp_path / "two"
    save_weights(one, model, info())
    save_weights(two, model.to(memory_format=torch.channels_last), info())
    save_weights(two, model, info())
    assert one.read_bytes() == two.read_bytes()
    assert weights_digest(one) == hashlib.sha256(one.read_bytes()).hexdigest()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["one", "two"]


def test_tied_weights_are_saved(tmp_path: Path) -> None:
    tied = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    tied[1].weight = tied[0].weight
    save_weights(tmp_path / "tied", tied, info())
    tensors, _ = load_weights(tmp_path / "tied")
    assert torch.equal(tensors["0.weight"], tensors["1.weight"])


def test_further_inputs_are_kept_and_a_file_without_them_is_as_before(tmp_path: Path) -> None:
    model = nn.Linear(1, 1)
    save_weights(tmp_path / "one", model, info())
    kept = safetensors.safe_open(tmp_path / "one", framework="pt").metadata()["kdcache"]
    assert set(json.loads(kept)) == set(GOOD), "what older versions read"
    several = replace(info(), others=(Array("float32", (5,)), Array("int64")))
    save_weights(tmp_path / "more", model, several)
    assert load_weights(tmp_path / "more")[1] == several


def test_a_file_without_our_metadata(tmp_path: Path) -> None:
    path = tmp_path / "foreign.safetensors"
    save_file(mlp_tensors(), path, metadata={"format": "pt"})
    tensors, told = load_weights(path)
    assert told is None
    assert set(tensors) == set(mlp_tensors())
    with pytest.raises(CheckpointError, match="does not say which network"):
        load_model(path)


def test_weights_of_another_network(tmp_path: Path) -> None:
    model = build_model("zoo:mlp", {"hidden": [4]}, input=Array("uint8", (2, 3)), outputs=3)
    wrong = {**mlp_tensors(), "head.weight": torch.zeros(5, 4), "surplus": torch.zeros(2)}
    del wrong["head.bias"]
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    with pytest.raises(
        UsageError,
        match=(
            r"w\.st: .*head\.bias is missing, \[3\] wanted; head\.weight is \[5, 4\] in the file and \[3, 4\] in the "
            r"network; surplus \[2\] is not in the network; give"
        ),
    ):
        apply_weights(model, wrong, Path("w.st"))
    assert all(torch.equal(before[key], tensor) for key, tensor in model.state_dict().items())
    with pytest.raises(UsageError, match=r"is missing, .*; and 1 more"):
        apply_weights(model, {}, Path("w.st"))
    apply_weights(model, fresh := mlp_tensors(), Path("w.st"))
    assert all(torch.equal(fresh[key], tensor) for key, tensor in model.state_dict().items())


def test_a_part_of_the_weights() -> None:
    model = build_model("zoo:mlp", {"hidden": [4]}, input=Array("uint8", (2, 3)), outputs=5)
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    source = mlp_tensors()  # of three classes: the hidden layer is alike, the head is not
    assert partial_weights(model, {**source, "surplus": torch.zeros(2)}, Path("w.st")) == 2
    after = model.state_dict()
    for key in after:
        assert torch.equal(after[key], source[key] if key.startswith("layers") else before[key])
    with pytest.raises(
        UsageError, match=r"w\.st: none of its 1 weights has the name and shape.*head\.bias in the file"
    ):
        partial_weights(model, {"head.bias": torch.zeros(3)}, Path("w.st"))


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    for target in ("file/w", "folder"):
        with pytest.raises(StorageError, match="cannot write"):
            save_weights(tmp_path / target, nn.Linear(1, 1), info())
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "folder"]


@pytest.mark.parametrize("value", [object(), float("nan"), "x" * (1 << 20)])
def test_what_cannot_be_kept_as_json(value: Any, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="JSON"):
        save_weights(tmp_path / "w", nn.Linear(1, 1), info(key=value))
    assert not list(tmp_path.iterdir())


def test_files_that_are_not_safetensors(tmp_path: Path) -> None:
    path = tmp_path / "w"
    save_file(mlp_tensors(), path, metadata={"kdcache": json.dumps(GOOD)})
    whole = path.read_bytes()
    for number, data in enumerate([b"", b"\x80\x02}q", whole[:-1], whole[:40], b"\xff" * 64, whole + b"x"]):
        bad = tmp_path / f"bad{number}"
        bad.write_bytes(data)
        with pytest.raises(CheckpointError, match=f"bad{number}: not a safetensors file"):
            load_weights(bad)
    for absent in (tmp_path / "absent", tmp_path):
        with pytest.raises(CheckpointError, match=str(absent)):
            load_weights(absent)
        with pytest.raises(CheckpointError, match=str(absent)):
            weights_digest(absent)


@settings(max_examples=40, deadline=None)
@given(place=st.integers(0, 10**6), flip=st.integers(1, 255))
def test_any_flipped_byte_gives_tensors_or_one_of_our_errors(
    place: int, flip: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / f"flipped-{os.getpid()}"
    save_file(mlp_tensors(), path, metadata={"kdcache": json.dumps(GOOD)})
    data = bytearray(path.read_bytes())
    data[place % len(data)] ^= flip
    path.write_bytes(data)
    with contextlib.suppress(CheckpointError, TrustError):
        load_model(path)


HOSTILE: list[tuple[Any, str]] = [
    ("{", "not JSON"),
    ("[]", "does not have the keys"),
    ("[" * 100_000, "not JSON"),
    ('{"model": 1, "model": 2}', "given twice"),
    (json.dumps(GOOD).replace("1.5", "NaN"), "NaN is not a JSON number"),
    (json.dumps(GOOD).replace("1.5", "1e999"), "unusable input_spec"),
    (json.dumps(GOOD).replace("1.5", "9" * 5000), "not JSON"),
    (json.dumps(GOOD).replace("1.5", "9" * 400), "unusable input_spec"),
    (" " * ((1 << 20) + 1), "at most"),
    ({**GOOD, "model": None}, "does not have the keys"),
    ({key: value for key, value in GOOD.items() if key != "extra"}, "does not have the keys"),
    ({**GOOD, "input": {"dtype": "object", "shape": []}}, "names the dtype 'object'"),
    ({**GOOD, "input": {"dtype": "uint8", "shape": [-1]}}, "out of bounds"),
    ({**GOOD, "input": {"dtype": "uint8", "shape": [True]}}, "out of bounds"),
    ({**GOOD, "input": {"dtype": "uint8", "shape": [1 << 20, 1 << 20]}}, "out of bounds"),
    ({**GOOD, "input": {"dtype": "uint8", "shape": [1] * 9}}, "out of bounds"),
    ({**GOOD, "outputs": 0}, "gives 0 outputs"),
    ({**GOOD, "outputs": True}, "gives True outputs"),
    ({**GOOD, "outputs": 1 << 40}, "outputs"),
    ({**GOOD, "input_spec": {"mean": "x", "std": None}}, "unusable input_spec"),
    ({**GOOD, "input_spec": {"mean": [1], "std": [0]}}, "unusable input_spec"),
    ({**GOOD, "others": 3}, "no list of at most 16"),
    ({**GOOD, "others": [{"dtype": "uint8", "shape": [1]}] * 17}, "no list of at most 16"),
    ({**GOOD, "others": [["fact"]]}, "without its dtype and shape"),
    ({**GOOD, "others": [{"dtype": "object", "shape": []}]}, "names the dtype 'object'"),
    ({**GOOD, "others": [{"dtype": "uint8", "shape": [1 << 40]}]}, "out of bounds"),
    ({**GOOD, "others": [{"dtype": "uint8", "shape": [3]}]}, "cannot take inputs of shape .2, 3. and .3."),
    ({**GOOD, "model": "zoo:nothing"}, "no such network"),
    ({**GOOD, "model": "nonsense"}, "nonsense"),
    ({**GOOD, "args": {"hidden": [4, 4]}}, "not those of this MLP"),
    ({**GOOD, "args": {"hidden": [1 << 31]}}, "not those of this MLP"),
    ({**GOOD, "args": {"hidden": [1 << 62]}}, "cannot be built"),
    ({**GOOD, "args": {"wrong": 1}}, "unknown argument 'wrong'"),
]


@pytest.mark.parametrize(("metadata", "said"), HOSTILE, ids=[str(n) for n in range(len(HOSTILE))])
def test_hostile_metadata(metadata: Any, said: str, tmp_path: Path) -> None:
    path = tmp_path / "hostile"
    text = metadata if isinstance(metadata, str) else json.dumps(metadata)
    save_file(mlp_tensors(), path, metadata={"kdcache": text})
    with pytest.raises((CheckpointError, TrustError), match=rf"hostile.*{said}"):
        load_model(path)


def test_a_file_may_not_name_code_to_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "named_by_weights.py").write_text(
        "import pathlib\nfrom torch import nn\n"
        "pathlib.Path(__file__).with_name('ran').touch()\n"
        "def build(num_classes):\n    return nn.Sequential(nn.Flatten(), nn.Linear(6, num_classes))\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    path = tmp_path / "w"
    model = nn.Sequential(nn.Flatten(), nn.Linear(6, 3))
    save_weights(path, model, WeightsInfo("named_by_weights:build", {}, Array("uint8", (2, 3)), 3))
    with pytest.raises(TrustError, match="refused"):
        load_model(path)
    assert not (tmp_path / "ran").exists()
    again, _ = load_model(path, allow_import=True)
    assert torch.equal(again[1].weight, model[1].weight)
