"""The end of an error about an unknown name: what was probably meant, and what there is."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = ["near_misses"]

MOST = 12  # names listed; some libraries know thousands


def near_misses(name: str, known: Iterable[str]) -> str:
    """`did you mean 'mlp'? known: cnn, convnet, ...`"""
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=3)
    more = f" and {len(names) - MOST} more" if len(names) > MOST else ""
    listed = f"known: {', '.join(names[:MOST])}{more}" if names else "there are none"
    return f"did you mean {' or '.join(map(repr, near))}? {listed}" if near else listed
