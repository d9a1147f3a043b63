"""Text classification: labelled sentences as rows of token ids of one length.

`input` int32 [L]: [CLS], the sentence's tokens, [SEP], then [PAD], which is 0 in every vocabulary that is made here
(of a tokenizer that is read, what it names so). A sentence that is too long loses its last tokens, never the [SEP].
`label` int64 [].
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from kdcache.config import SourceConfig
from kdcache.errors import SourceError, UsageError
from kdcache.sources.sentences import read_sentences
from kdcache.sources.source import ArraySource, count_classes
from kdcache.sources.tokenizer import Tokenizer
from kdcache.sources.vocabulary import chosen_tokenizer, sentences_of

__all__ = ["open_tsv"]

_MOST_TOKENS = 1 << 30  # 4 GiB of int32, which are in memory at once


def open_tsv(
    paths: Sequence[Path],
    config: SourceConfig,
    *,
    name: str,
    learn_from: Sequence[Path],
    class_names: tuple[str, ...] = (),
) -> ArraySource:
    """The sentences of the files, one file after the other; `learn_from` is what a tokenizer made here learns from.

    Raises SourceError for files, UsageError for keys that do not go together, MissingExtra.
    """
    key = config.label_key if "label_key" in config.model_fields_set else "label"
    known = len(class_names) or config.classes
    found = [read_sentences(path, config.text_key, key, known) for path in paths]
    tokenizer = chosen_tokenizer(
        config, lambda: sentences_of(config.tokenizer_files or learn_from, config.text_key), bert=True
    )
    if tokenizer.pad is None:
        raise UsageError(
            f"{name}: the tokenizer {tokenizer.name} has no token to pad with; take one that names a pad_token, "
            '"bytes", or train one by `vocabulary`'
        )
    labelled = [each.labels for each in found if each.labels is not None]
    if labelled and len(labelled) < len(found):
        raise SourceError(f"{name}: some of its files have labels and some have none; open them apart")
    labels = np.concatenate(labelled) if labelled else None
    ids = tokenizer.encode([text for each in found for text in each.texts])
    return ArraySource(
        name,
        _padded(ids, config.length, tokenizer, tokenizer.pad),
        labels,
        classes=known or count_classes(labels),
        class_names=class_names,
        extra={"tokenizer": tokenizer.fingerprint()},
    )


def _padded(ids: Sequence[NDArray[np.int32]], length: int, tokenizer: Tokenizer, pad: int) -> NDArray[np.int32]:
    """Int32 [N, L]: the start token, the ids as far as there is room, the end token, then `pad`."""
    before = [] if tokenizer.start is None else [tokenizer.start]
    after = [] if tokenizer.end is None else [tokenizer.end]
    room = length - len(before) - len(after)
    if room < 1:
        raise UsageError(f"[source] length = {length}: a row holds {len(before) + len(after)} special tokens, so more")
    if len(ids) * length > _MOST_TOKENS:
        raise UsageError(
            f"[source] length = {length}: {len(ids)} rows of it are more than the {_MOST_TOKENS} tokens that fit; the "
            f"longest sentence has {max(map(len, ids))}, so give less"
        )
    rows = np.full((len(ids), length), pad, np.int32)
    for row, one in zip(rows, ids, strict=True):
        tokens = [*before, *one[:room], *after]
        row[: len(tokens)] = tokens
    return rows
