"""Which of a teacher's outputs are the tokens of the source: an explicit map, never a guess.

A teacher's head is often larger than its tokenizer (rows of padding behind the last token) or belongs to a superset of
the vocabulary. `vocabulary = "first"` says that the source's ids are the first V of the teacher's; a file of V indices
says which of the teacher's ids each one is. Tokens are renamed on their way in, and the head is cut to the V rows that
are asked for, so that what is left out takes part in no softmax.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kdcache.errors import UsageError
from kdcache.sources.tokenizer import open_tokenizer

__all__ = ["tokenizer_of", "vocabulary_map"]


def vocabulary_map(asked: str | Path | None, classes: int | None, outputs: int, place: str) -> Tensor | None:
    """int64 [V]: the teacher's id of each of the `classes` tokens; None where both vocabularies are the same.

    `outputs` is the size of the teacher's own. Raises UsageError naming both sizes unless they are the same or a map
    was asked for, and for a map that is not V different ids of the teacher.
    """
    if classes is None or (asked is None and outputs == classes):
        return None
    if asked is None:
        raise UsageError(
            f"{place}: the teacher's vocabulary has {outputs} tokens, the source's has {classes}; use the teacher's "
            'own tokenizer, or say which of its outputs are the source\'s tokens: teacher.vocabulary = "first" (those '
            "behind are padding), or a .json or .npy file with the teacher's id for each"
        )
    if asked == "first":
        if outputs < classes:
            raise UsageError(
                f'{place}: vocabulary = "first", but the teacher has only {outputs} tokens and the source {classes}'
            )
        return torch.arange(classes)
    indices = _read(Path(asked))
    if indices.shape != (classes,) or indices.dtype.kind not in "iu":
        raise UsageError(
            f"{asked}: holds {indices.dtype} of shape {list(indices.shape)}; the map has one whole number for each of "
            f"the source's {classes} tokens"
        )
    if indices.min() < 0 or indices.max() >= outputs or len(np.unique(indices)) < classes:
        raise UsageError(
            f"{asked}: must name {classes} different tokens from 0 to {outputs - 1}, the teacher's; found "
            f"{len(np.unique(indices))} different ones from {indices.min()} to {indices.max()}"
        )
    return torch.from_numpy(indices.astype(np.int64))


def tokenizer_of(model: str) -> dict[str, Any] | None:
    """The fingerprint of the tokenizer.json that lies in the folder of hf:FOLDER; None where there is none."""
    family, _, name = model.partition(":")
    if family != "hf" or not (Path(name) / "tokenizer.json").is_file():
        return None
    return open_tokenizer(Path(name)).fingerprint()


def _read(path: Path) -> NDArray[Any]:
    try:
        if path.suffix == ".npy":
            return np.asarray(np.load(path, allow_pickle=False))
        values = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"{path}: the vocabulary map cannot be read ({error.strerror or error})") from error
    except (ValueError, RecursionError, EOFError) as error:
        raise UsageError(f"{path}: is neither an .npy array nor a JSON list of indices ({error})") from error
    if not isinstance(values, list) or not all(type(value) is int and abs(value) < 1 << 31 for value in values):
        raise UsageError(f"{path}: is no JSON list of whole numbers")
    return np.array(values, dtype=np.int64)
