"""Fewer rows, or fewer labels, of another source."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np

from kdcache.arrays import Array
from kdcache.errors import UsageError
from kdcache.fingerprint import digest_of
from kdcache.keyed import keyed_order
from kdcache.sources.source import Ids, Rows, Source, positions

__all__ = ["LabelledSource", "Subset", "choose", "keep_labels", "keep_rows"]


class LabelledSource(Source, Protocol):
    """A source that knows its labels without reading its inputs where it can."""

    def labels(self) -> Ids | None:
        """All labels in the order of `ids()`, None for an unlabelled source."""


class Subset:
    """The samples `kept` of a source under their old ids; `shown`, if given, are the ids whose labels stay."""

    def __init__(
        self,
        source: LabelledSource,
        kept: Ids,
        keys: Mapping[str, Any],
        *,
        shown: Ids | None = None,
        name: str | None = None,
    ) -> None:
        self._source = source
        self._kept = kept
        self._shown = shown
        self._keys = dict(keys)
        self._name = name

    @property
    def name(self) -> str:
        return self._name or self._source.name

    @property
    def arrays(self) -> dict[str, Array]:
        return self._source.arrays

    @property
    def classes(self) -> int | None:
        return self._source.classes

    @property
    def class_names(self) -> tuple[str, ...]:
        return self._source.class_names

    @property
    def extra(self) -> dict[str, Any]:
        """What the inner source wants a plan to keep of it beside its fingerprint."""
        return dict(getattr(self._source, "extra", {}))

    @property
    def label_classes(self) -> dict[str, int]:
        """How many classes each further label has, by the array's name."""
        return dict(getattr(self._source, "label_classes", {}))

    def __len__(self) -> int:
        return len(self._kept)

    def ids(self) -> Ids:
        return self._kept.copy()

    def labels(self) -> Ids | None:
        labels = self._source.labels()
        if labels is None:
            return None
        return self._hidden(self._kept, labels[positions(self._source.ids(), self._kept, self.name)])

    def read(self, ids: Ids) -> Rows:
        positions(self._kept, ids, self.name)
        rows = self._source.read(ids)
        if self._shown is None:
            return rows
        # A second label of a sample would tell what the first one hides.
        return {key: self._hidden(ids, v) if key.split(".")[0] == "label" else v for key, v in rows.items()}

    def fingerprint(self) -> str:
        """Of the inner source and of the keys that chose from it."""
        return digest_of({"source": self._source.fingerprint(), **self._keys})

    def _hidden(self, ids: Ids, labels: Ids) -> Ids:
        return labels if self._shown is None else np.where(np.isin(ids, self._shown), labels, -1)


def choose(ids: Ids, count: int, what: str, seed: int) -> Ids:
    """The `count` ids with the smallest keyed hashes, ascending. A longer choice contains every shorter one."""
    return np.sort(ids[keyed_order(f"kdcache-source-1|{what}|{seed}", ids)[:count]])


def keep_rows(source: LabelledSource, rows: int, seed: int) -> Subset:
    """A seeded choice of `rows` samples."""
    if rows > len(source):
        raise UsageError(f"{source.name}: rows = {rows} is more than the {len(source)} that it has")
    return Subset(source, choose(source.ids(), rows, "rows", seed), {"rows": rows, "seed": seed})


def keep_labels(source: LabelledSource, labelled: int, seed: int) -> Subset:
    """The same samples, all labels but a seeded choice of `labelled` hidden (-1)."""
    labels = source.labels()
    ids = source.ids()
    known = ids[:0] if labels is None else ids[labels >= 0]
    if labelled > len(known):
        raise UsageError(f"{source.name}: labelled = {labelled} is more than the {len(known)} labels that it has")
    shown = choose(known, labelled, "labels", seed)
    return Subset(source, ids, {"labelled": labelled, "seed": seed}, shown=shown)
