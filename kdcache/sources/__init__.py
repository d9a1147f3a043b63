"""What goes in: sources of samples, one kind a file, and the public sets that are known by name."""

from __future__ import annotations

from pathlib import Path

from kdcache.config import SourceConfig
from kdcache.errors import UsageError
from kdcache.sources.arrays import open_npy, open_npz
from kdcache.sources.cifar import open_cifar
from kdcache.sources.digits import open_digits
from kdcache.sources.documents import Part
from kdcache.sources.fetch import fetch
from kdcache.sources.folder import open_folder
from kdcache.sources.idx import open_idx
from kdcache.sources.python import open_python
from kdcache.sources.registry import (
    Dataset,
    Download,
    Split,
    find_dataset,
    is_present,
    is_text,
    known_datasets,
    open_dataset,
)
from kdcache.sources.source import Source
from kdcache.sources.subset import LabelledSource, keep_labels, keep_rows
from kdcache.sources.text import TextSource, open_text
from kdcache.sources.tokenizer import Tokenizer, check_same_vocabulary

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

# The keys of [source] that each kind takes, beside rows, labelled and seed, which all take.
_TEXT = {"tokenizer", "vocabulary", "tokenizer_files", "length", "document", "masked"}
_KEYS = {
    "dataset": {"split", "label"},
    "dataset of text": {"split", *_TEXT},
    "idx": {"images", "labels", "classes"},
    "cifar": {"files", "label"},
    "arrays": {"images", "labels", "path", "input_key", "label_key", "classes"},
    "digits": {"split"},
    "folder": {"path", "size"},
    "python": {"factory", "args"},
    "text": {"files", "classes", *_TEXT},
}
_SHARED = {"dataset", "kind", "rows", "labelled", "seed"}


def open_source(config: SourceConfig) -> Source:
    """The source that a recipe's [source] describes, with `rows` and `labelled` applied.

    A wrong or missing key is a UsageError, a file that is not what it should be a SourceError, a
    known dataset that is not on this machine a MissingData.
    """
    _check_keys(config)
    source = _open(config)
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
            return open_cifar(config.files, config.label, name=config.files[0].name)
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
            return open_folder(path, config.size, name=path.name)
        case "python":
            if config.factory is None:
                raise UsageError('[source] kind = "python" needs `factory`, written as package.module:factory')
            return open_python(config.factory, config.args)
        case "text":
            if not config.files:
                raise UsageError('[source] kind = "text" needs `files`, the list of its text, .jsonl or .npy files')
            return open_text([Part(path) for path in config.files], config, name=config.files[0].name)
        case _:
            return open_digits(config.split)


def _given(path: Path | None, config: SourceConfig, key: str) -> Path:
    if path is None:
        raise UsageError(f"[source] kind = {config.kind!r} needs `{key}`")
    return path


def _check_keys(config: SourceConfig) -> None:
    kind = str(config.kind)
    if config.dataset is not None:
        kind = "dataset of text" if is_text(config.dataset) else "dataset"
    if config.labelled is not None and "tokenizer" in _KEYS[kind]:
        raise UsageError("[source] `labelled` is for samples of one label each; in text every token has its own")
    for key, field in type(config).model_fields.items():
        is_set = getattr(config, key) != field.get_default(call_default_factory=True)
        if is_set and key not in _KEYS[kind] | _SHARED:
            what = kind if config.dataset is not None else f'kind = "{kind}"'
            raise UsageError(f"[source] `{key}` is not for {what}, which takes {', '.join(sorted(_KEYS[kind]))}")
