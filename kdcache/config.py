"""The recipe's tables as checked values. What a key means is said here, once; `kdcache recipes --keys` prints it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

__all__ = [
    "BudgetConfig",
    "EarlyStopping",
    "FieldConfig",
    "InputConfig",
    "ObjectiveConfig",
    "Recipe",
    "SourceConfig",
    "StoreConfig",
    "StudentConfig",
    "TeacherConfig",
    "TrainConfig",
    "VariantConfig",
]

Positive = Annotated[int, Field(gt=0, lt=2**40)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]
Fraction = Annotated[float, Field(ge=0, lt=1)]
Precision = Literal["fp32", "fp16", "bf16"]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]


def _as_json(args: dict[str, Any]) -> dict[str, Any]:
    """Arguments are written into plans and weights files, which are JSON: no dates, no NaN."""
    try:
        json.dumps(args, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"arguments are numbers, strings, booleans, lists and tables of these: {error}") from error
    return args


Arguments = Annotated[dict[str, Any], AfterValidator(_as_json)]


class Table(BaseModel):
    """A table of the recipe: unknown keys are errors, values never change."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class SourceConfig(Table):
    """Where samples come from. Either `dataset` (a name that `kdcache data list` shows) or `kind`."""

    dataset: str | None = None
    split: str = "train"
    kind: Literal["idx", "cifar", "arrays", "digits", "folder", "python", "text"] | None = None
    images: Path | None = Field(None, description="idx: the images file; arrays: the inputs .npy")
    labels: Path | None = Field(None, description="idx: the labels file; arrays: the labels .npy")
    files: tuple[Path, ...] = Field(
        (), description="cifar: the record files, in order; text: UTF-8 text, .jsonl, or .npy token ids"
    )
    label: Literal["fine", "coarse"] = Field("fine", description="cifar: which of CIFAR-100's two labels")
    path: Path | None = Field(None, description="folder: one subfolder a class; arrays: an .npz")
    size: Positive | None = Field(None, description="folder: side in pixels to which images are resized and cropped")
    input_key: str = Field("x", description="arrays: the .npz member that holds the inputs")
    label_key: str = Field("y", description="arrays: the .npz member that holds the labels")
    classes: Annotated[int, Field(gt=0, lt=2**31)] | None = Field(
        None, description="idx, arrays, text of token ids: how many there are (default: the largest + 1)"
    )
    factory: str | None = Field(None, description="python: package.module:factory")
    args: Arguments = Field(default_factory=dict, description="python: keyword arguments of the factory")
    tokenizer: Literal["bytes"] | Path | None = Field(
        None, description="text: a tokenizer.json, the folder that holds one, or bytes (UTF-8 and an end token)"
    )
    vocabulary: Positive | None = Field(None, description="text: size of a byte-level BPE that is trained on the files")
    tokenizer_files: tuple[Path, ...] = Field((), description="text: what it is trained on instead")
    length: Positive = Field(128, description="text: tokens a packed row")
    document: Annotated[str, Field(min_length=1)] | None = Field(
        None, description="text: file (the default), line, paragraph, or what stands between two documents"
    )
    masked: Annotated[float, Field(gt=0, lt=1)] | None = Field(
        None, description="text: for masked language models, the share of tokens that is hidden by `seed` (BERT: 0.15)"
    )
    rows: Positive | None = Field(None, description="keep so many rows, drawn by `seed`")
    labelled: Positive | None = Field(None, description="hide all labels but so many, drawn by `seed` (label -1)")
    seed: Seed = 0

    @model_validator(mode="after")
    def _one_origin(self) -> SourceConfig:
        if (self.dataset is None) == (self.kind is None):
            raise ValueError("give either `dataset` (a known name) or `kind`")
        return self


class StoreConfig(Table):
    """How the store is laid out on disk."""

    format: Literal["parquet", "hdf5"] = "parquet"
    compression: Literal["none", "lz4", "zstd", "deflate"] = "none"
    unit_rows: Positive = 8192
    block_rows: Positive = 1024
    order: Literal["shuffled", "source"] = "shuffled"
    seed: Seed = 0

    @model_validator(mode="after")
    def _fits(self) -> StoreConfig:
        if self.unit_rows % self.block_rows:
            raise ValueError(f"unit_rows = {self.unit_rows} must be a multiple of block_rows = {self.block_rows}")
        allowed = {"parquet": ("none", "lz4", "zstd"), "hdf5": ("none", "deflate")}[self.format]
        if self.compression not in allowed:
            raise ValueError(f"compression = {self.compression!r} is not for {self.format}: take one of {allowed}")
        return self


class InputConfig(Table):
    """Standardisation of integer inputs, per channel, in the units of the stored values (0-255 for images)."""

    mean: tuple[float, ...]
    std: tuple[Annotated[float, Field(gt=0)], ...]


class EarlyStopping(Table):
    """Stop when a metric of the held-out training rows no longer improves."""

    metric: Literal["val_loss", "val_accuracy"] = "val_loss"
    patience: Positive = Field(10, description="evaluations (one an epoch) without improvement")
    restore_best: bool = True


class TrainConfig(Table):
    """One fit: of a teacher, a baseline or a student."""

    epochs: Positive | None = Field(None, description="passes over the rows that the objective can use (default 10)")
    steps: Positive | None = Field(None, description="optimiser steps, instead of epochs")
    batch_size: Positive = 256
    optimizer: Literal["sgd", "adam", "adamw"] = "adam"
    lr: Annotated[float, Field(gt=0)] = 1e-3
    momentum: Fraction = Field(0.9, description="sgd")
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    schedule: Literal["constant", "cosine", "step", "one_cycle", "warmup"] = "constant"
    warmup: Fraction = Field(0.05, description="warmup, one_cycle: share of the steps in which the rate rises")
    milestones: tuple[Fraction, ...] = Field((0.5, 0.75), description="step: shares of the steps where the rate falls")
    gamma: Annotated[float, Field(gt=0, le=1)] = Field(0.1, description="step: the factor by which it falls")
    augment: tuple[Literal["flip", "crop"], ...] = Field(
        (), description="for fits on labels: a store's soft labels are those of the images as they are"
    )
    clip_norm: Annotated[float, Field(gt=0)] | None = None
    accumulate: Positive = Field(1, description="micro-batches summed into one step")
    precision: Precision = "fp32"
    early_stopping: EarlyStopping | None = None
    holdout: Fraction = Field(0.1, description="share of the training rows that early stopping watches")
    seeds: tuple[Seed, ...] = Field((0,), min_length=1)
    lanes: Positive = Field(64, description="sub-streams that the loader mixes; part of the order")
    memory_mib: Positive = Field(1024, description="what the loader may keep in memory")
    checkpoint_seconds: Annotated[float, Field(ge=0)] = Field(30.0, description="0 writes one after every step")

    @model_validator(mode="after")
    def _one_length(self) -> TrainConfig:
        if self.epochs is not None and self.steps is not None:
            raise ValueError("give `epochs` or `steps`, not both")
        if len(set(self.seeds)) != len(self.seeds):
            raise ValueError(f"seeds = {list(self.seeds)} repeats a seed")
        return self


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


class BudgetConfig(Table):
    """What a stored field may cost; the smallest codec that meets it is chosen by measuring on the teacher itself."""

    max_kl: Annotated[float, Field(gt=0)] | None = Field(None, description="nats a row, KL(teacher ‖ decoded)")
    at_temperature: tuple[Annotated[float, Field(gt=0, le=1000)], ...] = Field(
        (1.0, 2.0, 4.0), min_length=1, description="where max_kl holds, and where codecs are compared"
    )
    max_bytes: Positive | None = Field(None, description="bytes a row, before compression")

    @model_validator(mode="after")
    def _some_bound(self) -> BudgetConfig:
        if self.max_kl is None and self.max_bytes is None:
            raise ValueError("give max_kl, max_bytes or both")
        return self


class FieldConfig(Table):
    """How one field is stored. Which of the keys a codec takes, and their bounds, is the codec's to say."""

    codec: Literal["dense", "quant", "lowrank", "topk", "sampled", "threshold"] | None = Field(
        None, description="default dense, in float16 for logits; with a budget it is chosen"
    )
    budget: BudgetConfig | None = None
    dtype: Literal["float32", "float16", "bfloat16", "uint8"] | None = None
    k: Positive | None = Field(None, description="topk, threshold: classes kept a row")
    mass: Fraction | None = Field(None, description="topk: keep as many as reach this probability, at most k")
    anchor: Annotated[float, Field(gt=1)] | None = Field(
        None, description="topk: one more temperature at which the tail's mass is exact"
    )
    bytes: Positive | None = Field(None, description="lowrank: of a row")
    temperatures: tuple[Annotated[float, Field(gt=0)], ...] | None = Field(
        None, description="lowrank: those that rounding is for; topk: where the tail is exact"
    )
    bits: Literal[4, 8] | None = Field(None, description="quant")
    per: Literal["row", "channel"] | None = Field(None, description="quant: what shares one scale")
    draws: Positive | None = Field(None, description="sampled: draws a row")
    temperature: Annotated[float, Field(gt=0)] | None = Field(
        None, description="sampled, threshold: the one that the estimate is for"
    )
    seed: Seed | None = Field(None, description="sampled, threshold: of the draws")
    pool: Positive | None = Field(None, description="feature maps: average-pooled to this side before they are stored")
    project: Positive | None = Field(None, description="feature maps: channels after a fixed projection")
    projection: Literal["random", "pca"] | None = Field(None, description="feature maps: of which kind")
    attention: bool = Field(False, description="feature maps: only the mean over channels of the squares")

    def configuration(self) -> dict[str, Any]:
        """The keys that were given and that a codec reads."""
        others = {"codec", "budget", "pool", "project", "projection", "attention"}
        return self.model_dump(exclude=others, exclude_none=True)


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


class VariantConfig(Table):
    """One of several stores of the same teacher and rows, for comparing codecs; `fields` replace those of [fields]."""

    fields: dict[str, FieldConfig] = Field(min_length=1)


class Recipe(Table):
    """A whole experiment."""

    name: str = Field("recipe", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")
    source: SourceConfig
    eval_source: SourceConfig | None = None
    store: StoreConfig = StoreConfig()
    teacher: TeacherConfig | None = None
    fields: dict[str, FieldConfig] = Field(default_factory=dict)
    stores: dict[Name, VariantConfig] = Field(default_factory=dict, description="several stores of the one teacher")
    student: StudentConfig | None = None
    students: dict[Name, StudentConfig] = Field(default_factory=dict)
    objective: tuple[ObjectiveConfig, ...] = ()
    grid: dict[str, list[Any]] = Field(default_factory=dict)
    train: TrainConfig = TrainConfig()

    @model_validator(mode="after")
    def _fields_exist(self) -> Recipe:
        known = {"logits", *(self.teacher.taps if self.teacher else ())}
        tables = {"fields": self.fields, **{f"stores.{name}.fields": one.fields for name, one in self.stores.items()}}
        for table, fields in tables.items():
            for name in fields:
                if name not in known:
                    raise ValueError(f"{table}.{name}: the teacher gives {sorted(known)}; a feature map needs a tap")
            if self.teacher is None and fields:
                raise ValueError(f"[{table}] is given but there is no [teacher] to fill them")
        if self.grid and len(self.students) > 1:
            raise ValueError("[grid] multiplies one student, and several are named in [students]")
        return self
