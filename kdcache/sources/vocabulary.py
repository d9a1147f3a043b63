"""Which tokenizer a [source] asks for, and what one that is trained here learns from."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from kdcache.config import SourceConfig
from kdcache.errors import UsageError
from kdcache.sources.delimited import is_delimited
from kdcache.sources.documents import Part, read_documents
from kdcache.sources.sentences import read_sentences
from kdcache.sources.tokenizer import Tokenizer, bytes_tokenizer, open_tokenizer, train_tokenizer

__all__ = ["chosen_tokenizer", "sentences_of"]


def chosen_tokenizer(
    config: SourceConfig, texts: Callable[[], Iterable[str]], *, masked: bool = False, bert: bool = False
) -> Tokenizer:
    """The tokenizer of `tokenizer`, or one of `vocabulary` tokens that is trained on `texts()`.

    `masked`: it has a token that hides another. `bert`, or `special = "bert"`: it has BERT's special tokens.
    Raises UsageError for keys that do not go together, SourceError, MissingExtra.
    """
    bert = bert or config.special == "bert"
    if config.tokenizer is not None:
        for key in ("vocabulary", "tokenizer_files"):
            if getattr(config, key):
                raise UsageError(f"[source] `{key}` is for a tokenizer that is trained here; `tokenizer` gives one")
        if config.tokenizer == "bytes":
            return bytes_tokenizer(masked, bert=bert)
        if config.special:
            raise UsageError(f"[source] `special` is for a tokenizer that is made here; {config.tokenizer} has its own")
        return open_tokenizer(config.tokenizer)
    if config.vocabulary is None:
        raise UsageError(
            '[source] needs `tokenizer` (a tokenizer.json, its folder, or "bytes"), or `vocabulary`, the size of one '
            "that is trained on the files"
        )
    return train_tokenizer(texts(), config.vocabulary, masked=masked, bert=bert)


def sentences_of(paths: Sequence[Path], text_key: str | None = None) -> list[str]:
    """The texts of files: the sentences of a .tsv or .csv, all else as whole documents.

    Sources of text and of sentences read them alike, so the same files give both the same vocabulary.
    """
    texts: list[str] = []
    for path in paths:
        if is_delimited(path):
            texts += read_sentences(path, text_key, None).texts
        else:
            texts += [document.text for document in read_documents(Part(path), "file")]
    return texts
