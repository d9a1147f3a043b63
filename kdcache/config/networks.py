"""[teacher], [student], [[objective]]: the networks, and what a student learns from."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, ConfigDict, Field, model_validator

from kdcache.config.source import SourceConfig
from kdcache.config.table import Arguments, Positive, Precision, Table
from kdcache.config.train import TrainConfig

__all__ = ["InputConfig", "ObjectiveConfig", "StudentConfig", "TeacherConfig"]


Inputs = Annotated[tuple[str, ...], Field(min_length=1)]


class InputConfig(Table):
    """Standardisation of integer inputs, per channel, in the units of the stored values (0-255 for images)."""

    mean: tuple[float, ...]
    std: tuple[Annotated[float, Field(gt=0)], ...]


def _several(value: Any) -> Any:
    return (value,) if isinstance(value, str) else value


Names = Annotated[tuple[str, ...], BeforeValidator(_several), Field(min_length=1)]


class ObjectiveConfig(Table):
    """One term of the loss; the terms are summed with their weights. Whatever else is given is the loss's own option,
    such as temperature: `kdcache objectives` lists them."""

    model_config = ConfigDict(extra="allow")

    name: str
    weight: Annotated[float, Field(ge=0)] = 1.0
    field: Names | None = Field(None, description="what it reads of the store; default `logits`, or the label for `ce`")
    output: Names | None = Field(None, description="which of the student's outputs it judges; default `logits`")
    tap: Names | None = Field(None, description="for losses on features: the student's module path, or several")

    @model_validator(mode="after")
    def _warm(self) -> ObjectiveConfig:
        # Losses check their options where they are composed; this one many have, and a dump composes none.
        temperature = self.options.get("temperature", 1.0)
        if isinstance(temperature, int | float) and not temperature > 0:
            raise ValueError(f"temperature = {temperature}: it must be above 0")
        return self

    @property
    def options(self) -> dict[str, Any]:
        """What is the loss's own."""
        return dict(self.model_extra or {})


class TeacherConfig(Table):
    """The network that is run once. `weights` from a file, or trained here by `fit`."""

    model: str
    args: Arguments = Field(default_factory=dict)
    inputs: Inputs = Field(("input",), description="the source's arrays that the network is given, in this order")
    weights: Path | None = None
    input: InputConfig | None = Field(None, description="for weights that do not carry their own")
    batch_size: Positive = 256
    precision: Precision = "fp32"
    fit: TrainConfig | None = None
    source: SourceConfig | None = Field(None, description="what it is fitted on, where that is not the recipe's source")
    objective: tuple[ObjectiveConfig, ...] = Field((), description="of its fit; default: the baseline's")
    vocabulary: Literal["first"] | Path | None = Field(
        None, description="a larger one than the source's: first (the source's tokens are its first), or a map's file"
    )
    taps: dict[str, str] = Field(default_factory=dict, description="field = module path")
    outputs: dict[str, str] = Field(default_factory=dict, description="field = one of its outputs beside logits")
    pool: Literal["avg", "none"] = Field("none", description="avg: mean over the spatial axes of every tap")

    @model_validator(mode="after")
    def _weights_or_fit(self) -> TeacherConfig:
        if self.weights is not None and self.fit is not None:
            raise ValueError("give `weights` or `fit`, not both")
        for name in (*self.taps, *self.outputs):
            if name in ("input", "label", "id", "logits"):
                raise ValueError(f"taps, outputs: {name!r} is a field of its own; call it features.<name>")
        if twice := self.taps.keys() & self.outputs.keys():
            raise ValueError(f"taps, outputs: {min(twice)!r} is in both; give each field a name of its own")
        return self


class StudentConfig(Table):
    """A network to be fitted; what it leaves out is taken from `[student]`, `[[objective]]` and `[train]`."""

    model: str | None = None
    args: Arguments | None = None
    inputs: Inputs | None = Field(None, description="the store's fields that the network is given (default: input)")
    weights: Path | None = Field(None, description="begin with those of this file that fit by name and shape")
    store: Names | None = Field(None, description="one of [stores], or several to be zipped; [teachers]: default all")
    view: Literal["cycle", "all", "plain"] | Positive | None = Field(
        None, description="[views]: one by its number, another each epoch (the default), all at once, or none"
    )
    objective: tuple[ObjectiveConfig, ...] | None = None
    train: dict[str, Any] = Field(default_factory=dict, description="keys of [train] that differ for this student")
