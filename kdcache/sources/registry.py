"""The public datasets that are known by name: `data/datasets.toml` as checked values."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from functools import cache
from importlib import resources
from pathlib import Path
from types import MappingProxyType
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from kdcache.config import SourceConfig
from kdcache.errors import MissingData, UsageError
from kdcache.near_misses import near_misses
from kdcache.recipe_file import data_root
from kdcache.sources.cifar import open_cifar
from kdcache.sources.digits import open_digits
from kdcache.sources.documents import Part
from kdcache.sources.graph import open_graph
from kdcache.sources.idx import open_idx
from kdcache.sources.series import open_series
from kdcache.sources.subset import LabelledSource
from kdcache.sources.text import open_text
from kdcache.sources.tsv import open_tsv
from kdcache.sources.voc import open_voc

__all__ = ["Dataset", "Download", "Split", "find_dataset", "is_present", "kind_of", "known_datasets", "open_dataset"]


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Split(_Table):
    """The files of a split, by their plain names."""

    kind: Literal["idx", "cifar", "digits", "text", "tsv", "series", "graph", "voc"]
    images: str | None = None
    labels: str | None = None
    files: tuple[str, ...] = ()
    part: tuple[float, float] = (0.0, 1.0)  # of each text file: shares of its bytes, moved to blank lines


class Download(_Table):
    """One file that a publisher offers; of an archive only `members` (name in it → bytes) are taken out."""

    file: str
    url: str
    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    bytes: int
    members: dict[str, int] = Field(default_factory=dict)


class Dataset(_Table):
    """A known dataset. Without `downloads` it comes with a library, or a person puts it there as `obtain` says."""

    title: str
    licence: str
    citation: str
    homepage: str
    class_names: tuple[str, ...] = ()
    coarse_names: tuple[str, ...] = ()
    label_bytes: int | None = None
    splits: dict[str, Split]
    downloads: tuple[Download, ...] = ()
    obtain: str = ""


@cache
def known_datasets() -> Mapping[str, Dataset]:
    """All of them by name, in the order of the file."""
    try:
        text = resources.files("kdcache_data").joinpath("datasets.toml").read_text(encoding="utf-8")
    except ModuleNotFoundError:  # run from a checkout that is not installed
        text = Path(__file__).parents[2].joinpath("data", "datasets.toml").read_text(encoding="utf-8")
    return MappingProxyType({name: Dataset.model_validate(table) for name, table in tomllib.loads(text).items()})


def find_dataset(name: str) -> Dataset:
    """The dataset of this name; UsageError with the nearest known one."""
    known = known_datasets()
    if name not in known:
        raise UsageError(f"dataset = {name!r} is not known; {near_misses(name, known)} (`kdcache data list`)")
    return known[name]


def is_present(name: str, split: str, root: Path | None = None) -> bool:
    """Whether the files of a split lie under the root (default `data_root()`)."""
    try:
        _located(name, split, (root or data_root()) / name)
    except MissingData:
        return False
    return True


def kind_of(name: str) -> str:
    """The kind of source that a known dataset is; UsageError for an unknown name."""
    return next(iter(find_dataset(name).splits.values())).kind


def open_dataset(config: SourceConfig) -> LabelledSource:
    """A split of a known dataset from under `data_root()`; MissingData says which command brings it.

    A tokenizer that is to be trained learns from the split `train`, whichever split is opened.
    """
    name, split, label = str(config.dataset), config.split, config.label
    dataset = find_dataset(name)
    if split not in dataset.splits:
        raise UsageError(f"split = {split!r}: {name} has {', '.join(dataset.splits)}")
    if label == "coarse" and not dataset.coarse_names:
        raise UsageError(f'label = "coarse": {name} has one label per image; leave it out')
    title = f"{name} {split}"
    kind = dataset.splits[split].kind
    if (config.labels_also or config.facts) and not dataset.coarse_names:
        raise UsageError(f"`labels_also` and `facts`: {name} has one label per image; leave them out")
    folder = data_root() / name
    files = _located(name, split, folder)
    names = dataset.coarse_names if label == "coarse" else dataset.class_names
    match kind:
        case "idx":
            return open_idx(*files, name=title, classes=len(names), class_names=names)
        case "cifar":
            also, facts = config.labels_also, config.facts
            return open_cifar(
                files,
                label,
                name=title,
                label_bytes=dataset.label_bytes,
                class_names=names,
                labels_also=also,
                facts=facts,
            )
        case "text":
            return open_text(_parts(name, split), config, name=title, learn_from=_parts(name, "train"))
        case "tsv":
            learn = _located(name, "train", folder)
            return open_tsv(files, config, name=title, learn_from=learn, class_names=names)
        case "series":
            return open_series(files[1:], files[0], config, split, name=title)
        case "graph":
            return open_graph(files[0], split, name=title, class_names=names)
        case "voc":
            return open_voc(folder, config, split, name=title, class_names=names)
    return open_digits(split)


def _parts(name: str, split: str) -> list[Part]:
    first, last = find_dataset(name).splits[split].part
    return [Part(path, first, last) for path in _located(name, split, data_root() / name)]


def _located(name: str, split: str, folder: Path) -> list[Path]:
    """The files of a split that are there, plain before gzipped."""
    record = find_dataset(name).splits[split]
    wanted = [file for file in (record.images, record.labels, *record.files) if file]
    found = [path for file in wanted for path in [_plain_or_packed(folder / file)] if path]
    if len(found) < (min(1, len(wanted)) if record.kind == "cifar" else len(wanted)):
        obtain = find_dataset(name).obtain
        cure = f"no command fetches it: {obtain} Or" if obtain else f"run `kdcache data get {name}`, or"
        raise MissingData(
            f"{name} {split}: looked in {folder} for {', '.join(wanted)} (plain or .gz): "
            f"{cure} set KDCACHE_DATA to the folder that holds {name}/"
        )
    return found


def _plain_or_packed(path: Path) -> Path | None:
    for candidate in (path, path.with_name(path.name + ".gz")):
        if candidate.is_file():
            return candidate
    return None
