"""Text, or token ids, as packed rows of one length for causal and masked language models.

`input` int32 [L] token ids, `segment` uint16 [L] the document's number inside the row, `label` int32 [P]: for a causal
model P = L - 1 and label[t] is token t + 1, for a masked one P = L and label[t] is the token that was hidden at t. A
label is -1 where nothing is scored: across documents, in a prompt, in the padding, at tokens that are not hidden.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdcache.arrays import Array
from kdcache.config import SourceConfig
from kdcache.errors import SourceError, UsageError
from kdcache.sources.arrays import map_npy
from kdcache.sources.documents import Document, Part, read_documents
from kdcache.sources.packing import Masking, Packing, checked_length, concatenate
from kdcache.sources.source import Ids, Rows, contents_digest
from kdcache.sources.tokenizer import Tokenizer, bytes_tokenizer, open_tokenizer
from kdcache.sources.vocabulary import chosen_tokenizer, sentences_of

__all__ = ["TextSource", "open_text"]

_CHUNK_TOKENS = 1 << 22


class TextSource:
    """The rows of a `Packing`; row number = id. `classes` is the size of the vocabulary."""

    def __init__(self, name: str, packing: Packing, tokenizer: Tokenizer) -> None:
        self.name = name
        self.classes: int | None = tokenizer.size
        self.class_names: tuple[str, ...] = ()
        length = packing.length
        self.arrays = {
            "input": Array("int32", (length,)),
            "segment": Array("uint16", (length,)),
            "label": Array("int32", (packing.targets,)),
        }
        self.tokenizer = tokenizer
        self._packing = packing
        self._fingerprint: str | None = None

    @property
    def extra(self) -> dict[str, Any]:
        """What a plan keeps of this source beside its fingerprint."""
        return {"tokenizer": self.tokenizer.fingerprint()}

    def __len__(self) -> int:
        return len(self._packing)

    def ids(self) -> Ids:
        return np.arange(len(self), dtype=np.int64)

    def labels(self) -> Ids | None:
        """None: a row has a label for each of its tokens, not one of its own."""
        return None

    def read(self, ids: Ids) -> Rows:
        if len(ids) and (ids.min() < 0 or ids.max() >= len(self)):
            raise UsageError(f"{self.name}: asked for ids {ids.min()} to {ids.max()}; it has 0 to {len(self) - 1}")
        return self._packing.rows(ids)

    def fingerprint(self) -> str:
        if self._fingerprint is None:
            self._fingerprint = contents_digest(self.arrays, self.ids(), self._runs())
        return self._fingerprint

    def _runs(self) -> Iterable[Rows]:
        step = max(1, _CHUNK_TOKENS // self._packing.length)
        for start in range(0, len(self), step):
            yield self.read(np.arange(start, min(start + step, len(self)), dtype=np.int64))


def open_text(
    parts: Sequence[Part], config: SourceConfig, *, name: str, learn_from: Sequence[Part] | None = None
) -> TextSource:
    """Files of text (.jsonl among them) or of token ids (.npy), tokenised and packed as `config` says.

    A tokenizer that is trained here learns from `tokenizer_files`, else from `learn_from`, else from the files
    themselves. Raises SourceError for files, UsageError for keys that do not go together, MissingExtra.
    """
    length = checked_length(config.length)
    masked = config.masked is not None
    ready = [part.path for part in parts if part.path.suffix == ".npy"]
    if ready and len(ready) < len(parts):
        raise UsageError(f"{name}: `files` mixes token ids ({ready[0].name}) with text; give one kind")
    if ready:
        tokenizer = _tokenizer_of_ids(config)
        documents, tokenizer = _ids(ready, tokenizer)
        scored = None
    else:
        if config.document is not None and all(".jsonl" in part.path.suffixes for part in parts):
            raise UsageError(f"{name}: every line of a .jsonl is a document; leave out `document`")
        document = config.document or "file"
        found = [read for part in parts for read in read_documents(part, document)]
        tokenizer = chosen_tokenizer(config, lambda: _texts(config, learn_from, found, document), masked=masked)
        documents, scored = _encode(found, tokenizer)
    tokens, starts, flags = concatenate(documents, scored, causal=not masked, place=name)
    end = tokenizer.pad if config.special else tokenizer.end
    pad = 0 if end is None else end
    masking = None
    if config.masked is not None:
        if tokenizer.mask is None:
            raise UsageError(
                f"{name}: masked = {config.masked}, but the tokenizer {tokenizer.name} has no mask token; "
                'take a masked model\'s tokenizer, "bytes", or train one by `vocabulary`'
            )
        masking = Masking(config.masked, tokenizer.mask, tokenizer.ordinary, config.seed)
    return TextSource(name, Packing(tokens, starts, flags, length, pad, masking), tokenizer)


def _texts(
    config: SourceConfig, learn_from: Sequence[Part] | None, found: Sequence[Document], document: str
) -> Iterable[str]:
    """What a tokenizer that is trained here learns from."""
    if config.tokenizer_files and config.special:
        return sentences_of(config.tokenizer_files)
    parts = [Part(path) for path in config.tokenizer_files] or learn_from
    texts = found if parts is None else [read for part in parts for read in read_documents(part, document)]
    return (_whole(text) for text in texts)


def _whole(document: Document) -> str:
    return document.text if document.prompt is None else document.prompt + document.text


def _encode(
    documents: Sequence[Document], tokenizer: Tokenizer
) -> tuple[list[NDArray[np.int32]], list[NDArray[np.bool_]] | None]:
    """Tokens of every document with the end token behind it, and which are scored where some document has a prompt.

    Prompt and response are tokenised apart, so that no token lies across their boundary.
    """
    end = np.array([] if tokenizer.end is None else [tokenizer.end], dtype=np.int32)
    texts = tokenizer.encode([document.text for document in documents])
    if all(document.prompt is None for document in documents):
        return [np.concatenate([ids, end]) for ids in texts], None
    prompts = tokenizer.encode([document.prompt or "" for document in documents])
    whole = [np.concatenate([prompt, ids, end]) for prompt, ids in zip(prompts, texts, strict=True)]
    return whole, [np.arange(len(ids)) >= len(prompt) for ids, prompt in zip(whole, prompts, strict=True)]


def _tokenizer_of_ids(config: SourceConfig) -> Tokenizer | None:
    if config.vocabulary is not None or config.document is not None or config.tokenizer_files or config.special:
        raise UsageError(
            "[source] `vocabulary`, `document`, `tokenizer_files` and `special` are for text, not for .npy token ids"
        )
    if config.tokenizer is None:
        if config.classes is None:
            return None
        return Tokenizer("token ids", config.classes, _no_text, None, None)
    if config.classes is not None:
        raise UsageError("[source] give `tokenizer` or `classes` (the size of the vocabulary), not both")
    masked = config.masked is not None
    return bytes_tokenizer(masked) if config.tokenizer == "bytes" else open_tokenizer(config.tokenizer)


def _ids(paths: Sequence[Path], tokenizer: Tokenizer | None) -> tuple[list[NDArray[np.int32]], Tokenizer]:
    """One document for a file of ids [N], one for each row of a file [D, N]."""
    documents: list[NDArray[np.int32]] = []
    highest = 0
    for path in paths:
        values = map_npy(path)
        if values.ndim not in (1, 2) or values.dtype.kind not in "iu":
            raise SourceError(
                f"{path}: token ids are whole numbers [N], or [D, N] with a document a row; found {values.dtype} of "
                f"shape {list(values.shape)}"
            )
        size = (1 << 31) - 1 if tokenizer is None else tokenizer.size
        bad = (values >= size) | (values < 0)
        if bad.any():
            place = int(bad.argmax())
            raise SourceError(
                f"{path}: token {place} is {values.reshape(-1)[place]}; the vocabulary has 0 to {size - 1}. These ids "
                "belong to another tokenizer"
            )
        highest = max(highest, int(values.max(initial=0)))
        documents += [row.astype(np.int32) for row in np.atleast_2d(values)]
    return documents, tokenizer or Tokenizer("token ids", highest + 1, _no_text, None, None)


def _no_text(texts: Sequence[str]) -> list[NDArray[np.int32]]:
    raise UsageError("token ids came without a tokenizer, so no text can be encoded; give `tokenizer`")
