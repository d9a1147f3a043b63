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
    kind: (
        Literal["idx", "cifar", "arrays", "digits", "folder", "python", "text", "tsv", "series", "graph", "voc"] | None
    ) = None
    images: Path | None = Field(None, description="idx: the images file; arrays: the inputs .npy")
    labels: Path | None = Field(
        None, description="idx: the labels file; arrays: the labels .npy; series: the anomaly windows, .json"
    )
    files: tuple[Path, ...] = Field(
        (),
        description="cifar: the record files, in order; text: UTF-8 text, .jsonl, or .npy token ids; "
        "tsv: .tsv or .csv; series: .csv, one a series",
    )
    label: Literal["fine", "coarse"] = Field("fine", description="cifar: which of CIFAR-100's two labels")
    labels_also: tuple[Literal["fine", "coarse"], ...] = Field(
        (), description="cifar: CIFAR-100's other label, kept as label.coarse or label.fine"
    )
    facts: Literal["coarse"] | None = Field(
        None, description="cifar: CIFAR-100's coarse label as `fact`, 20 numbers of which one is 1"
    )
    path: Path | None = Field(
        None,
        description="folder: one subfolder a class; arrays: an .npz; series: a folder of .csv; graph: an .npz; "
        "voc: the folder of Annotations, JPEGImages and perhaps ImageSets",
    )
    size: Positive | tuple[Positive, Positive] | None = Field(
        None,
        description="folder: side in pixels to which images are resized and cropped; voc: a side, or [height, width]",
    )
    side: Positive | None = Field(None, description="images: side in pixels to which they are resized")
    channels: Literal[1, 3] | None = Field(None, description="images: grey repeated (3), or colour as luma (1)")
    input_key: str = Field("x", description="arrays: the .npz member that holds the inputs")
    label_key: str = Field(
        "y", description="arrays: the .npz member that holds the labels; tsv: the column (default: label)"
    )
    text_key: str | None = Field(None, description="tsv: the column that holds the text, where there is a header")
    classes: Annotated[int, Field(gt=0, lt=2**31)] | None = Field(
        None, description="idx, arrays, text of token ids: how many there are (default: the largest + 1)"
    )
    factory: str | None = Field(None, description="python: package.module:factory")
    args: Arguments = Field(default_factory=dict, description="python: keyword arguments of the factory")
    tokenizer: Literal["bytes"] | Path | None = Field(
        None, description="text, tsv: a tokenizer.json, the folder that holds one, or bytes (UTF-8 and an end token)"
    )
    vocabulary: Positive | None = Field(
        None, description="text, tsv: size of a byte-level BPE that is trained on the files"
    )
    special: Literal["bert"] | None = Field(
        None, description="text: make the tokenizer with BERT's special tokens, [PAD] 0, as kind tsv always does"
    )
    tokenizer_files: tuple[Path, ...] = Field((), description="text, tsv: what it is trained on instead")
    length: Positive = Field(128, description="text, tsv: tokens a row")
    document: Annotated[str, Field(min_length=1)] | None = Field(
        None, description="text: file (the default), line, paragraph, or what stands between two documents"
    )
    masked: Annotated[float, Field(gt=0, lt=1)] | None = Field(
        None, description="text: for masked language models, the share of tokens that is hidden by `seed` (BERT: 0.15)"
    )
    window: Positive = Field(64, description="series: values of a window")
    stride: Positive = Field(1, description="series: rows from one window to the next")
    horizon: Annotated[int, Field(ge=0, lt=2**31)] = Field(
        1, description="series: values after the window that are the target; 0: the window itself is"
    )
    parts: tuple[Annotated[float, Field(gt=0, lt=1)], Annotated[float, Field(gt=0, lt=1)]] = Field(
        (0.35, 0.6), description="series: shares of each series at which fitting, and at which calibration, ends"
    )
    probation: Annotated[float, Field(gt=0, le=1)] = Field(
        0.15, description="series: first share of each series, whose mean and deviation standardise it"
    )
    boxes: Positive | None = Field(None, description="voc: most boxes of an image (default: the most there are)")
    mask: bool = Field(False, description="voc: add a label for each pixel, the ellipse inside each box")
    mask_size: Positive | tuple[Positive, Positive] | None = Field(
        None, description="voc: side, or [height, width], of the masks (default: that of the images)"
    )
    unlabelled: bool = Field(False, description="leave all labels out")
    rows: Positive | None = Field(None, description="keep so many rows, drawn by `seed`")
    labelled: Positive | None = Field(None, description="hide all labels but so many, drawn by `seed` (label -1)")
    seed: Seed = 0

    @model_validator(mode="after")
    def _one_origin(self) -> SourceConfig:
        if (self.dataset is None) == (self.kind is None):
            raise ValueError("give either `dataset` (a known name) or `kind`")
        return self
