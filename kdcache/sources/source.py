"""What a source is, and the source whose samples are the rows of an array."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from kdcache.arrays import DTYPES, Array
from kdcache.errors import SourceError, UsageError
from kdcache.fingerprint import canonical, digest_of

__all__ = [
    "LABEL",
    "ArraySource",
    "Ids",
    "Rows",
    "Source",
    "checked_labels",
    "contents_digest",
    "count_classes",
    "describe",
    "native",
    "positions",
]

Ids = npt.NDArray[np.int64]
Rows = dict[str, npt.NDArray[Any]]

LABEL = Array("int64")
_CHUNK_BYTES = 1 << 24
_MOST_CLASSES = 1 << 31


@runtime_checkable
class Source(Protocol):
    """Samples with stable ids; whatever has these can be dumped."""

    @property
    def name(self) -> str:
        """For people: "fashion-mnist train"."""

    @property
    def arrays(self) -> dict[str, Array]:
        """`input` (an image is [C, H, W] or [H, W]) and, unless the source is unlabelled, `label`.

        `label` is int64 [], or [P] with one for each pixel (row by row) or token. Any further arrays are kept beside
        them under their names: `label.coarse` int64 [], `fact` float32 [F], `target` float32 [H], ...
        """

    @property
    def classes(self) -> int | None:
        """Number of classes, None where it is not known."""

    @property
    def class_names(self) -> tuple[str, ...]:
        """One name per class, () where they are not known."""

    def __len__(self) -> int: ...

    def ids(self) -> Ids:
        """int64 [N], ascending, the same at every opening."""

    def read(self, ids: Ids) -> Rows:
        """The rows of these ids, in their order, C-contiguous; label -1 = unlabelled."""

    def fingerprint(self) -> str:
        """Hexadecimal SHA-256 of what the samples are, never of where they lie."""


class ArraySource:
    """The rows of `inputs` [N, *shape], of `labels` int64 [N] and of `more`; row number = id.

    All are in memory or memory-mapped. `extra` is what a plan keeps of the source beside its fingerprint,
    `label_classes` how many classes each further label has, by the array's name.

    Its fingerprint is that of the decoded samples, so that a file packed again, or kept in another
    of the formats, stays the same source.
    """

    def __init__(
        self,
        name: str,
        inputs: npt.NDArray[Any],
        labels: npt.NDArray[np.int64] | None,
        *,
        classes: int | None,
        class_names: tuple[str, ...] = (),
        more: Mapping[str, npt.NDArray[Any]] | None = None,
        extra: Mapping[str, Any] | None = None,
        label_classes: Mapping[str, int] | None = None,
    ) -> None:
        self.name = name
        self.classes = classes
        self.class_names = class_names
        self.extra = dict(extra or {})
        self.label_classes = dict(label_classes or {})
        self._labels = labels
        self._columns = {"input": inputs} | ({} if labels is None else {"label": labels}) | dict(more or {})
        self.arrays = {key: describe(values, name) for key, values in self._columns.items()}
        self._fingerprint: str | None = None

    def __len__(self) -> int:
        return len(self._columns["input"])

    def ids(self) -> Ids:
        return np.arange(len(self), dtype=np.int64)

    def labels(self) -> Ids | None:
        """All labels in the order of `ids()`, None for an unlabelled source."""
        return self._labels

    def read(self, ids: Ids) -> Rows:
        if len(ids) and (ids.min() < 0 or ids.max() >= len(self)):
            raise UsageError(f"{self.name}: asked for ids {ids.min()} to {ids.max()}; it has 0 to {len(self) - 1}")
        return {key: native(values[ids]) for key, values in self._columns.items()}

    def fingerprint(self) -> str:
        if self._fingerprint is None:
            self._fingerprint = contents_digest(self.arrays, self.ids(), self._runs())
        return self._fingerprint

    def _runs(self) -> Iterable[Rows]:
        step = max(1, _CHUNK_BYTES // max(1, self.arrays["input"].width))
        for start in range(0, len(self), step):
            yield {key: native(values[start : start + step]) for key, values in self._columns.items()}


def native(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """The array C-contiguous and little-endian; a memory map becomes a plain array."""
    return np.asarray(array, dtype=array.dtype.newbyteorder("<"), order="C")


def describe(values: npt.NDArray[Any], place: str) -> Array:
    """The `Array` of the rows of [N, *shape]; SourceError for a dtype that a store cannot keep."""
    dtype = values.dtype.name if values.dtype.kind in "iuf" else str(values.dtype)
    if dtype not in DTYPES:
        raise SourceError(
            f"{place}: its values are {dtype}, which no store keeps; "
            f"save them as one of {', '.join(sorted(DTYPES.keys() - {'bfloat16'}))}"
        )
    return Array(dtype, tuple(int(length) for length in values.shape[1:]))


def checked_labels(labels: npt.NDArray[Any], classes: int | None, place: str) -> npt.NDArray[np.int64]:
    """The labels as int64; SourceError naming the first row outside -1 (unlabelled), 0 … `classes` - 1."""
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        raise SourceError(
            f"{place}: labels must be whole numbers, one per sample; found {labels.dtype} of shape {list(labels.shape)}"
        )
    bad = labels >= (_MOST_CLASSES if classes is None else classes)
    if labels.dtype.kind == "i":
        bad |= labels < -1
    if bad.any():
        row = int(bad.argmax())
        allowed = "0 or more" if classes is None and labels[row] < 0 else f"0 to {(classes or _MOST_CLASSES) - 1}"
        raise SourceError(f"{place}: row {row} has label {labels[row]}, allowed are {allowed}, or -1 for unlabelled")
    return labels.astype(np.int64)


def count_classes(labels: npt.NDArray[np.int64] | None) -> int | None:
    """Largest label + 1; None where nothing is labelled."""
    highest = -1 if labels is None or not len(labels) else int(labels.max())
    return highest + 1 if highest >= 0 else None


def positions(known: Ids, asked: Ids, place: str) -> npt.NDArray[np.intp]:
    """Where each asked id stands among the known ones (ascending); UsageError naming an id that is not there."""
    found = np.searchsorted(known, asked)
    absent = known[np.minimum(found, len(known) - 1)] != asked
    if absent.any():
        raise UsageError(f"{place}: has no sample with id {asked[int(absent.argmax())]}")
    return found


def contents_digest(arrays: Mapping[str, Array], ids: Ids, runs: Iterable[Rows]) -> str:
    """Digest of all samples, given in the order of `ids` run by run; how long the runs are does not matter."""
    states = {
        name: hashlib.sha256(canonical({"dtype": array.dtype, "shape": array.shape, "rows": len(ids)}))
        for name, array in arrays.items()
    }
    for run in runs:
        for name, state in states.items():
            state.update(np.ascontiguousarray(run[name]).reshape(-1).view(np.uint8).data)
    state = hashlib.sha256(ids.astype("<i8").data)
    return digest_of({"id": state.hexdigest(), **{name: state.hexdigest() for name, state in states.items()}})
