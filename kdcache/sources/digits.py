"""Scikit-learn's handwritten digits: real, small and embedded, so that a demo needs no download."""

from __future__ import annotations

import numpy as np

from kdcache.errors import MissingExtra, UsageError
from kdcache.sources.source import ArraySource
from kdcache.sources.subset import Subset, choose

__all__ = ["open_digits"]

_TEST_ROWS = 500


def open_digits(split: str) -> Subset:
    """1,797 images uint8 [8, 8] with values 0 to 16: 500 are `test`, the others `train`, ids are those of the whole."""
    if split not in ("train", "test"):
        raise UsageError(f"digits: has no split {split!r}; it has train and test")
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise MissingExtra("scikit-learn", "demo", "the digits source") from error
    found = load_digits()
    whole = ArraySource(
        "digits",
        found.images.astype(np.uint8),
        found.target.astype(np.int64),
        classes=10,
        class_names=tuple(str(digit) for digit in range(10)),
    )
    ids = whole.ids()
    kept = choose(ids, _TEST_ROWS, "digits", 0)
    if split == "train":
        kept = np.setdiff1d(ids, kept)
    return Subset(whole, kept, {"split": split}, name=f"digits {split}")
