"""[teacher], [student], [[objective]]: the networks, and what a student learns from."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from kdcache.config.table import Arguments, Positive, Precision, Table
from kdcache.config.train import TrainConfig

__all__ = ["InputConfig", "ObjectiveConfig", "StudentConfig", "TeacherConfig"]


class InputConfig(Table):
    """Standardisation of integer inputs, per channel, in the units of the stored values (0-255 for images)."""

    mean: tuple[float, ...]
    std: tuple[Annotated[float, Field(gt=0)], ...]


class TeacherConfig(Table):
    """The network that is run once. `weights` from a file, or trained here by `fit`."""

    model: str
    args: Arguments = Field(default_factory=dict)
    weights: Path | None = None
    input: InputConfig | None = Field(None, description="for weights that do not carry their own")
    batch_size: Positive = 256
    precision: Precision = "fp32"
    fit: TrainConfig | None = None
    vocabulary: Literal["first"] | Path | None = Field(
        None, description="a larger one than the source's: first (the source's tokens are its first), or a map's file"
    )
    taps: dict[str, str] = Field(default_factory=dict, description="field = module path")
    pool: Literal["avg", "none"] = Field("none", description="avg: mean over the spatial axes of every tap")

    @model_validator(mode="after")
    def _weights_or_fit(self) -> TeacherConfig:
        if self.weights is not None and self.fit is not None:
            raise ValueError("give `weights` or `fit`, not both")
        for name in self.taps:
            if name in ("input", "label", "id", "logits"):
                raise ValueError(f"taps: {name!r} is a field of its own; call the tap features.<name>")
        return self


class ObjectiveConfig(Table):
    """One term of the loss; the terms are summed with their weights."""

    name: str
    weight: Annotated[float, Field(ge=0)] = 1.0
    temperature: Annotated[float, Field(gt=0)] | None = None
    field: str | None = Field(None, description="the teacher's field; default `logits`, or the label for `ce`")
    tap: str | None = Field(None, description="the student's module path, for losses on features")
    alpha: Annotated[float, Field(ge=0)] | None = Field(None, description="dkd: weight of the target class (default 1)")
    beta: Annotated[float, Field(ge=0)] | None = Field(None, description="dkd: other classes (8); jsd: teacher (0.5)")


class StudentConfig(Table):
    """A network to be fitted; what it leaves out is taken from `[student]`, `[[objective]]` and `[train]`."""

    model: str | None = None
    args: Arguments | None = None
    store: str | None = Field(None, description="one of [stores]; needed where there are any")
    objective: tuple[ObjectiveConfig, ...] | None = None
    train: dict[str, Any] = Field(default_factory=dict, description="keys of [train] that differ for this student")
