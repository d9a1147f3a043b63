"""A source that a Python object gives: whatever has `__len__` and `read(ids)`."""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from typing import Any

import numpy as np

from kdcache.arrays import Array
from kdcache.errors import KdcacheError, SourceError, UsageError
from kdcache.sources.source import (
    LABEL,
    Ids,
    Rows,
    checked_labels,
    contents_digest,
    count_classes,
    describe,
    native,
    positions,
)

__all__ = ["PythonSource", "open_python"]

_CHUNK_BYTES = 1 << 24
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


class PythonSource:
    """Checks what the object gives, on every read.

    `read(ids)` gives a dict with `input` [B, *shape] and, unless unlabelled, `label` of integers, [B] or, for pixels
    or tokens, [B, P]. Any further arrays [B, *shape] are kept beside them under their names.
    The object may also have `classes`, `class_names`, `ids()` and `fingerprint()`. Without a
    fingerprint all samples are read once to make one; without `classes`, once to find the largest label.
    """

    def __init__(self, name: str, inner: Any) -> None:
        self.name = name
        self._inner = inner
        if not (callable(getattr(inner, "read", None)) and hasattr(inner, "__len__")):
            raise UsageError(f"{name}: gave a {type(inner).__name__}; a source needs __len__ and read(ids)")
        self._ids = self._checked_ids()
        self.class_names: tuple[str, ...] = tuple(str(each) for each in getattr(inner, "class_names", ()) or ())
        self.arrays: dict[str, Array] = {}
        first = self._asked(self._ids[:1])
        self.arrays = {
            key: Array(LABEL.dtype, values.shape[1:])
            if key == "label"
            else describe(values, f"{name}: read()[{key!r}]")
            for key, values in first.items()
        }

    def __len__(self) -> int:
        return len(self._ids)

    @cached_property
    def classes(self) -> int | None:
        known = getattr(self._inner, "classes", None)
        if known is not None:
            if isinstance(known, bool) or not isinstance(known, int) or known < 1:
                raise SourceError(f"{self.name}: `classes` is {known!r}; expected a whole number above 0")
            return known
        if self.class_names or "label" not in self.arrays:
            return len(self.class_names) or None
        highest = [count_classes(self._checked(run, None)["label"]) for run in self._runs()]
        return max((each for each in highest if each is not None), default=None)

    def ids(self) -> Ids:
        return self._ids.copy()

    def labels(self) -> Ids | None:
        if "label" not in self.arrays or self.arrays["label"].shape:
            return None
        return np.concatenate([self._checked(run, None)["label"] for run in self._runs()])

    def read(self, ids: Ids) -> Rows:
        positions(self._ids, ids, self.name)
        return self._checked(ids, self.classes)

    def fingerprint(self) -> str:
        own = getattr(self._inner, "fingerprint", None)
        return str(own()) if callable(own) else self._contents

    @cached_property
    def _contents(self) -> str:
        return contents_digest(self.arrays, self._ids, (self._checked(run, None) for run in self._runs()))

    def _runs(self) -> Iterator[Ids]:
        step = max(1, _CHUNK_BYTES // max(1, self.arrays["input"].width))
        for start in range(0, len(self), step):
            yield self._ids[start : start + step]

    def _checked_ids(self) -> Ids:
        own = getattr(self._inner, "ids", None)
        count = len(self._inner)
        ids = np.asarray(own()) if callable(own) else np.arange(count)
        whole = count > 0 and ids.shape == (count,) and ids.dtype.kind in "iu"
        if not whole or (np.diff(ids.astype(np.int64)) < 1).any():
            raise SourceError(
                f"{self.name}: has {count} samples and ids {ids.dtype} {list(ids.shape)}; "
                "expected at least one sample and as many whole numbers, ascending"
            )
        return ids.astype(np.int64)

    def _asked(self, ids: Ids) -> Rows:
        try:
            given = self._inner.read(ids)
        except KdcacheError:
            raise
        except Exception as error:  # somebody else's code: name it, keep its traceback as the cause
            raise SourceError(f"{self.name}: read() raised {type(error).__name__}: {error}") from error
        keys = sorted(map(str, given)) if isinstance(given, Mapping) else type(given).__name__
        if "input" not in keys or not isinstance(keys, list):
            raise SourceError(f"{self.name}: read() gave {keys}; expected a dict with `input` and perhaps `label`")
        if strange := [key for key in given if not (isinstance(key, str) and _NAME.fullmatch(key)) or key == "id"]:
            raise SourceError(
                f"{self.name}: read() gave {str(strange[0])[:40]!r}; an array's name has letters, digits, '.', '_' and "
                "'-', and `id` is taken"
            )
        rows = {key: np.asarray(values) for key, values in given.items()}
        for key, values in rows.items():
            if not values.ndim or len(values) != len(ids):
                raise SourceError(f"{self.name}: read() of {len(ids)} ids gave {key} of shape {list(values.shape)}")
        return rows

    def _checked(self, ids: Ids, classes: int | None) -> Rows:
        given = self._asked(ids)
        if given.keys() != self.arrays.keys():
            raise SourceError(f"{self.name}: read() gave {sorted(given)}, and {sorted(self.arrays)} the first time")
        rows: Rows = {}
        for key, values in given.items():
            label = key == "label"
            found = Array(LABEL.dtype, values.shape[1:]) if label else describe(values, self.name)
            if found != self.arrays[key]:
                raise SourceError(f"{self.name}: read() gave {key}s {found}, and {self.arrays[key]} the first time")
            if label:
                place = f"{self.name}: labels read from id {ids[:1]}"
                rows[key] = checked_labels(values.reshape(-1), classes, place).reshape(values.shape)
            else:
                rows[key] = native(values)
        return rows


def open_python(reference: str, args: Mapping[str, Any]) -> PythonSource:
    """Calls `package.module:factory` with `args`; UsageError naming the reference where that fails."""
    factory = _factory(reference)
    try:
        inner = factory(**args)
    except KdcacheError:
        raise
    except Exception as error:  # somebody else's code: name it, keep its traceback as the cause
        raise UsageError(f"{reference}: called with {dict(args)} it raised {type(error).__name__}: {error}") from error
    return PythonSource(reference, inner)


def _factory(reference: str) -> Callable[..., Any]:
    module_name, colon, attribute = reference.partition(":")
    if not (module_name and colon and attribute):
        raise UsageError(f"factory = {reference!r}: write it as package.module:factory")
    try:
        found: Any = importlib.import_module(module_name)
        for part in attribute.split("."):
            found = getattr(found, part)
    except AttributeError as error:
        raise UsageError(f"{reference}: the module has no {attribute!r} ({error})") from error
    except Exception as error:  # importing runs somebody else's code
        raise UsageError(
            f"{reference}: the module cannot be imported ({type(error).__name__}: {error}); "
            "is it installed, or its folder in PYTHONPATH?"
        ) from error
    if not callable(found):
        raise UsageError(f"{reference}: is a {type(found).__name__}, not something to call")
    return found  # type: ignore[no-any-return]
