"""A source around another one; and the one that leaves its labels out."""

from __future__ import annotations

from typing import Any

from kdcache.arrays import Array
from kdcache.fingerprint import digest_of
from kdcache.sources.source import Ids, Rows
from kdcache.sources.subset import LabelledSource

__all__ = ["Unlabelled", "Wrapped"]

# What tells the answer: `label`, `boxes`, and what is named after them.
_TOLD = ("label", "boxes")


class Wrapped:
    """All that the inner source has; whoever inherits says what is otherwise, and gives it a fingerprint."""

    def __init__(self, source: LabelledSource) -> None:
        self._source = source

    @property
    def name(self) -> str:
        return self._source.name

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
        return len(self._source)

    def ids(self) -> Ids:
        return self._source.ids()

    def labels(self) -> Ids | None:
        return self._source.labels()

    def read(self, ids: Ids) -> Rows:
        return self._source.read(ids)

    def fingerprint(self) -> str:
        return self._source.fingerprint()


class Unlabelled(Wrapped):
    """The samples without `label`, `boxes` and what is named after them; the number of classes stays known."""

    @property
    def arrays(self) -> dict[str, Array]:
        return {key: array for key, array in self._source.arrays.items() if not _tells(key)}

    @property
    def label_classes(self) -> dict[str, int]:
        return {}

    def labels(self) -> Ids | None:
        return None

    def read(self, ids: Ids) -> Rows:
        return {key: values for key, values in self._source.read(ids).items() if not _tells(key)}

    def fingerprint(self) -> str:
        return digest_of({"source": self._source.fingerprint(), "unlabelled": True})


def _tells(key: str) -> bool:
    return key.split(".")[0] in _TOLD
