"""What the stores of a fit say about it: the inputs, the classes, the labels, the fields to learn from."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from kdcache.arrays import Array
from kdcache.errors import UsageError
from kdcache.store import StoredField, StoreReader, open_store

if TYPE_CHECKING:
    from kdcache.models import InputSpec

__all__ = ["Data", "open_data"]


@dataclass(frozen=True, eq=False)
class Data:
    """Aligned stores, opened. `labels` is -1 where a row has none, and for every row where the stores keep none."""

    readers: tuple[StoreReader, ...]
    fields: dict[str, StoredField]
    input: Array
    classes: int
    ids: NDArray[np.int64]
    labels: NDArray[np.int64]

    @property
    def rows(self) -> int:
        return len(self.ids)

    @property
    def place(self) -> str:
        """The stores' paths, for messages."""
        return " + ".join(str(reader.path) for reader in self.readers)

    @property
    def digests(self) -> list[str]:
        """The identity of every store, in the order given."""
        return [reader.digest for reader in self.readers]

    @property
    def has_labels(self) -> bool:
        return "label" in self.fields

    def input_spec(self) -> InputSpec:
        """The standardisation of the inputs that the first store's plan states; none if it states none."""
        from kdcache.models import InputSpec

        statistics = self.readers[0].plan.input_statistics
        if statistics is None:
            return InputSpec(None, None)
        return InputSpec(tuple(statistics["mean"]), tuple(statistics["std"]))


@contextlib.contextmanager
def open_data(stores: Sequence[Path]) -> Iterator[Data]:
    """Open aligned stores; their fields are named as the loader names them (`logits@2`: the second store's)."""
    from kdcache.loader.fields import named_fields

    if not stores:
        raise UsageError("a fit needs at least one store")
    with contextlib.ExitStack() as stack:
        readers = tuple(stack.enter_context(open_store(path)) for path in stores)
        first = readers[0]
        named = named_fields(readers)
        fields = {name: field for name, (_, field) in named.items()}
        if "input" not in fields:
            raise UsageError(
                f"{first.path}: the store has no field 'input', so there is nothing to train on; "
                f"it has {', '.join(sorted(fields))}"
            )
        classes = first.plan.classes or ("logits" in fields and fields["logits"].array.shape[-1])
        if not classes:
            raise UsageError(f"{first.path}: the store does not say how many classes there are and has no logits")
        labels = (
            named["label"][0].read_column("label") if "label" in fields else np.full(first.rows, -1, dtype=np.int64)
        )
        yield Data(readers, fields, fields["input"].array, int(classes), first.read_column("id"), labels)
