"""The teachers whose logits are compared: a CIFAR-100 ResNet-20, and language models over BPE vocabularies.

Each is made once in the work folder and kept there. Students are under-trained networks, so that the gradient q - p is
the one of a distillation that is still under way.
"""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from kdcache.config import FieldConfig, Recipe, SourceConfig, TeacherConfig
from kdcache.models import InputSpec, build_model
from kdcache.store import StoreReader, open_store
from kdcache.teacher import dump

__all__ = ["Teacher", "c100"]

Pair = tuple[Tensor, Tensor]
RECIPE = """
name = "c100"
[source]
dataset = "cifar-100"
split = "train"
[eval_source]
dataset = "cifar-100"
split = "test"
[teacher]
model = "zoo:resnet20"
[teacher.fit]
epochs = 30
optimizer = "sgd"
lr = 0.2
weight_decay = 5e-4
schedule = "one_cycle"
batch_size = 128
augment = ["flip", "crop"]
[fields.logits]
codec = "dense"
dtype = "float32"
[train]
epochs = 1
[student]
model = "zoo:mlp"
[[objective]]
name = "kd"
"""


@dataclass(frozen=True)
class Teacher:
    """Float32 logits [n, C]: `pilot` for fitting, `choose` and `judged` as (teacher's, student's) of other rows."""

    name: str
    facts: str
    pilot: Tensor
    choose: Pair
    judged: dict[str, Pair]


def c100(work: Path, quick: bool) -> Teacher:
    """ResNet-20 on the training images that are here, and its logits on them and on the test images."""
    run = work / "run"
    if not (run / "store" / "manifest.json").exists():
        recipe = work / "c100.toml"
        recipe.write_text(RECIPE)
        command = "import kdcache_cli; kdcache_cli.main()"
        subprocess.run([sys.executable, "-c", command, "run", str(recipe), "--out", str(run)], check=True)
    held_out = work / "c100-held-out"
    if not (held_out / "manifest.json").exists():
        teacher = TeacherConfig(model="zoo:resnet20", weights=run / "teacher" / "model.safetensors")
        fields = {"logits": FieldConfig(codec="dense", dtype="float32")}
        dump(Recipe(source=SourceConfig(dataset="cifar-100", split="test"), teacher=teacher, fields=fields), held_out)
    with open_store(run / "store") as train, open_store(held_out) as test:
        z, z_test = (torch.tensor(store.read_column("logits")) for store in (train, test))
        model = image_student(work / "c100-student.pt", train)
        s, s_test = (outputs(model, store, scaling(train)) for store in (train, test))
        labels = torch.tensor(test.read_column("label"))
    accuracy = float((z_test.argmax(1) == labels).float().mean())
    fit, last = (1024, 3072) if quick else (4096, len(z))
    judged = {"train": (z[fit + 512 : last], s[fit + 512 : last]), "held-out": (z_test, s_test)}
    return Teacher(
        "c100",
        f"CIFAR-100, ResNet-20, {100 * accuracy:.1f} % right on {len(z_test)} held-out images; {shape(z_test)}; "
        f"student {100 * float((s_test.argmax(1) == labels).float().mean()):.1f} %",
        z[:fit],
        (z[fit : fit + 512], s[fit : fit + 512]),
        judged,
    )


def image_student(path: Path, store: StoreReader) -> nn.Module:
    """A small convolutional network after two epochs on the labels."""
    model = build_model("zoo:convnet", {"widths": [16, 32, 64]}, input=store.fields["input"].array, outputs=100)
    if path.exists():
        model.load_state_dict(torch.load(path, weights_only=True))
        return model.eval()
    torch.manual_seed(0)
    for module in model.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    x, y = torch.tensor(store.read_column("input")), torch.tensor(store.read_column("label"))
    scale = scaling(store)
    for _ in range(2):
        for rows in torch.randperm(len(x)).split(128):
            nn.functional.cross_entropy(model(scale.apply(x[rows])), y[rows]).backward()
            optimizer.step()
            optimizer.zero_grad()
    torch.save(model.state_dict(), path)
    return model.eval()


def scaling(store: StoreReader) -> InputSpec:
    """The standardisation of the store's inputs."""
    statistics = store.plan.input_statistics
    assert statistics is not None
    return InputSpec(tuple(statistics["mean"]), tuple(statistics["std"]))


@torch.inference_mode()
def outputs(model: nn.Module, store: StoreReader, scale: InputSpec) -> Tensor:
    """Float32 logits [rows, C]."""
    return torch.cat([model(scale.apply(x)) for x in torch.tensor(store.read_column("input")).split(500)])


def shape(logits: Tensor) -> str:
    """How peaked the distributions are."""
    p = logits[:2048].double().softmax(1)
    order = p.sort(1, descending=True).values.cumsum(1)
    entropy = float(-(p * p.clamp_min(1e-300).log()).sum(1).mean())
    mass = ", ".join(f"{float(order[:, k - 1].mean()):.3f} in the best {k}" for k in (1, 10, 100) if k < p.shape[1])
    return f"mean entropy {entropy:.2f} nats, mass {mass}"
