"""[source]: where samples come from."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from kdcache.config.table import Arguments, Positive, Seed, Table

__all__ = ["SourceConfig"]


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
