"""What goes in: sources of samples, one kind a file, and the public sets that are known by name."""

from __future__ import annotations

from pathlib import Path

from kdcache.config import SourceConfig
from kdcache.errors import SourceError, UsageError
from kdcache.sources.arrays import open_npy, open_npz
from kdcache.sources.cifar import open_cifar
from kdcache.sources.digits import open_digits
from kdcache.sources.documents import Part
from kdcache.sources.fetch import fetch
from kdcache.sources.folder import open_folder
from kdcache.sources.graph import open_graph
from kdcache.sources.idx import open_idx
from kdcache.sources.images import ImagesAs
from kdcache.sources.python import open_python
from kdcache.sources.registry import (
    Dataset,
    Download,
    Split,
    find_dataset,
    is_present,
    kind_of,
    known_datasets,
    open_dataset,
)
from kdcache.sources.series import open_series
from kdcache.sources.source import Source
from kdcache.sources.subset import LabelledSource, keep_labels, keep_rows
from kdcache.sources.text import TextSource, open_text
from kdcache.sources.tokenizer import Tokenizer, check_same_vocabulary
from kdcache.sources.tsv import open_tsv
from kdcache.sources.voc import open_voc
from kdcache.sources.wrapped import Unlabelled

__all__ = [
    "Dataset",
    "Download",
    "Source",
    "Split",
    "TextSource",
    "Tokenizer",
    "check_same_vocabulary",
    "fetch",
    "find_dataset",
    "is_present",
    "known_datasets",
    "open_source",
]

# The keys of [source] that each kind takes, beside those in _SHARED, which all take.
_IMAGES = {"side", "channels"}
_TOKENS = {"tokenizer", "vocabulary", "tokenizer_files", "length"}
_TEXT = {*_TOKENS, "document", "masked", "special"}
_WINDOWS = {"window", "stride", "horizon", "parts", "probation"}
_BOXES = {"size", "boxes", "mask", "mask_size"}
_KEYS = {
    "dataset": {"split", "label", "labels_also", "facts", *_IMAGES},
    "dataset of text": {"split", *_TEXT},
    "dataset of tsv": {"split", *_TOKENS},
    "dataset of series": {"split", *_WINDOWS},
    "dataset of graph": {"split"},
    "dataset of voc": {"split", *_BOXES},
    "idx": {"images", "labels", "classes", *_IMAGES},
    "cifar": {"files", "label", "labels_also", "facts", *_IMAGES},
    "arrays": {"images", "labels", "path", "input_key", "label_key", "classes", *_IMAGES},
    "digits": {"split", *_IMAGES},
    "folder": {"path", "size", *_IMAGES},
    "python": {"factory", "args", *_IMAGES},
    "text": {"files", "classes", *_TEXT},
    "tsv": {"files", "classes", "text_key", "label_key", *_TOKENS},
    "series": {"files", "path", "labels", "split", *_WINDOWS},
    "graph": {"path", "split"},
    "voc": {"path", "split", *_BOXES},
}
_SHARED = {"dataset", "kind", "unlabelled", "rows", "labelled", "seed"}


def open_source(config: SourceConfig) -> Source:
    """The source that a recipe's [source] describes, with `side`, `channels`, `unlabelled`, `rows`, `labelled` applied.

    A wrong or missing key is a UsageError, a file that is not what it should be a SourceError, a
    known dataset that is not on this machine a MissingData.
    """
    _check_keys(config)
    source = _open(config)
    if config.side is not None or config.channels is not None:
        source = ImagesAs(source, config.side, config.channels)
    if config.unlabelled:
        source = Unlabelled(source)
    if config.rows is not None:
        source = keep_rows(source, config.rows, config.seed)
    if config.labelled is not None:
        source = keep_labels(source, config.labelled, config.seed)
    return source


def _open(config: SourceConfig) -> LabelledSource:
    if config.dataset is not None:
        return open_dataset(config)
    match config.kind:
        case "idx":
            images = _given(config.images, config, "images")
            return open_idx(images, config.labels, name=images.name, classes=config.classes)
        case "cifar":
            if not config.files:
                raise UsageError('[source] kind = "cifar" needs `files`, the list of its record files')
            return open_cifar(
                config.files,
                config.label,
                name=config.files[0].name,
                labels_also=config.labels_also,
                facts=config.facts,
            )
        case "arrays":
            if (config.path is None) == (config.images is None):
                raise UsageError('[source] kind = "arrays" needs either `path` (an .npz) or `images` (an .npy)')
            if config.path is not None:
                keys = config.input_key, config.label_key
                return open_npz(config.path, *keys, name=config.path.name, classes=config.classes)
            images = _given(config.images, config, "images")
            return open_npy(images, config.labels, name=images.name, classes=config.classes)
        case "folder":
            path = _given(config.path, config, "path")
            if isinstance(config.size, tuple):
                raise UsageError(
                    '[source] kind = "folder" takes `size` as one side; its images are cropped to a square'
                )
            return open_folder(path, config.size, name=path.name)
        case "python":
            if config.factory is None:
                raise UsageError('[source] kind = "python" needs `factory`, written as package.module:factory')
            return open_python(config.factory, config.args)
        case "text":
            if not config.files:
                raise UsageError('[source] kind = "text" needs `files`, the list of its text, .jsonl or .npy files')
            return open_text([Part(path) for path in config.files], config, name=config.files[0].name)
        case "tsv":
            if not config.files:
                raise UsageError('[source] kind = "tsv" needs `files`, the list of its .tsv or .csv files')
            return open_tsv(config.files, config, name=config.files[0].name, learn_from=config.files)
        case "series":
            return _open_series(config)
        case "graph":
            path = _given(config.path, config, "path")
            return open_graph(path, config.split, name=path.name)
        case "voc":
            path = _given(config.path, config, "path")
            return open_voc(path, config, config.split, name=path.name)
        case _:
            return open_digits(config.split)


def _open_series(config: SourceConfig) -> LabelledSource:
    if (config.path is None) == (not config.files):
        raise UsageError('[source] kind = "series" needs either `files`, a .csv a series, or `path`, their folder')
    files = config.files
    if config.path is not None:
        files = tuple(sorted(config.path.rglob("*.csv")))
        if not files:
            raise SourceError(f"{config.path}: holds no .csv; `path` is a folder with a .csv a series")
    return open_series(files, config.labels, config, config.split, name=(config.path or files[0]).name)


def _given(path: Path | None, config: SourceConfig, key: str) -> Path:
    if path is None:
        raise UsageError(f"[source] kind = {config.kind!r} needs `{key}`")
    return path


def _check_keys(config: SourceConfig) -> None:
    kind = str(config.kind)
    if config.dataset is not None:
        kind = f"dataset of {kind_of(config.dataset)}"
        kind = kind if kind in _KEYS else "dataset"
    if config.labelled is not None and ("masked" in _KEYS[kind] or "boxes" in _KEYS[kind]):
        every = "text every token" if "masked" in _KEYS[kind] else "images with boxes every box"
        raise UsageError(f"[source] `labelled` is for samples of one label each; in {every} has its own")
    if config.unlabelled and ("masked" in _KEYS[kind] or config.labelled is not None):
        other = "`labelled`" if config.labelled is not None else "text, whose labels are its own tokens"
        raise UsageError(f"[source] `unlabelled` does not go with {other}; leave one out")
    for key, field in type(config).model_fields.items():
        is_set = getattr(config, key) != field.get_default(call_default_factory=True)
        if is_set and key not in _KEYS[kind] | _SHARED:
            what = kind if config.dataset is not None else f'kind = "{kind}"'
            raise UsageError(f"[source] `{key}` is not for {what}, which takes {', '.join(sorted(_KEYS[kind]))}")
