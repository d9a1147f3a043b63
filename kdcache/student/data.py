"""What the stores of a fit say about it: the inputs, the classes, how much is labelled, the fields to learn from."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from kdcache.arrays import Array, named_arrays, outputs_for, sequence_positions
from kdcache.errors import UsageError
from kdcache.store import StoredField, StoreReader, open_store

if TYPE_CHECKING:
    from kdcache.loader.views import View
    from kdcache.models import InputSpec
    from kdcache.views import ViewsSpec

__all__ = ["Data", "open_data"]

_READ_BYTES = 1 << 24


@dataclass(frozen=True, eq=False)
class Data:
    """Aligned stores, opened.

    `facts` is what the stores measured of their fields, named as `fields` are: {"fidelity": {field: ...}}. `scored`
    int32 [N] is how many labels a row has: 1 or 0, or as many as its positions that are scored (label >= 0).
    `positions` is P, the targets of a sequence of tokens; None for other samples, whose label is one, or one for each
    pixel. `outputs` is how many a network has: the classes, or the values of the `target` that it predicts.
    """

    readers: tuple[StoreReader, ...]
    fields: dict[str, StoredField]
    facts: dict[str, Any]
    input: Array
    outputs: int
    views: ViewsSpec | None
    ids: NDArray[np.int64]
    scored: NDArray[np.int32]
    positions: int | None

    @property
    def rows(self) -> int:
        return len(self.ids)

    def seen(self, view: View) -> tuple[dict[str, StoredField], dict[str, Any]]:
        """The fields, and the facts, under the names that a batch has for them which shows this view."""
        if view is None:
            return self.fields, self.facts
        from kdcache.loader.views import field_of_view

        shown = view if isinstance(view, int) else 1
        called = {name: field_of_view(name, shown) for name in self.fields}
        own = {name: new for name, new in called.items() if new not in (name, None)}
        kept = [name for name, new in called.items() if new == name and name not in own.values()]
        fields = {name: self.fields[name] for name in kept} | {str(new): self.fields[name] for name, new in own.items()}
        known = self.facts["fidelity"]  # measured on view 1, which stands for the others
        stated = {str(new): known.get(f"view01.{new}", known.get(name, {})) for name, new in own.items()}
        return fields, {"fidelity": {**known, **stated}}

    @property
    def arrays(self) -> dict[str, Array]:
        """Every field's decoded tensor."""
        return {name: field.array for name, field in self.fields.items()}

    def inputs(self, names: Sequence[str]) -> list[Array]:
        """What a network is given of a row; UsageError for a name that the stores do not have."""
        return named_arrays(names, self.arrays, self.place)

    @property
    def labelled(self) -> NDArray[np.bool_]:
        """Which rows have a label, bool [N]."""
        return self.scored > 0

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

    @property
    def tokenizer(self) -> Mapping[str, Any] | None:
        """What the plan keeps of the tokenizer; None where the inputs are no text."""
        found: Mapping[str, Any] | None = self.readers[0].plan.source.get("tokenizer")
        return found

    @property
    def sequence_fields(self) -> tuple[str, ...]:
        """What a batch of sequences needs beside its inputs: which positions are scored, and which see each other."""
        return () if self.positions is None else ("label", *(("segment",) if "segment" in self.fields else ()))

    def input_spec(self) -> InputSpec:
        """The standardisation of the inputs that the first store's plan states; none for tokens."""
        from kdcache.models import InputSpec

        statistics = self.readers[0].plan.input_statistics
        if statistics is None or self.positions is not None:
            return InputSpec(None, None)
        return InputSpec(tuple(statistics["mean"]), tuple(statistics["std"]))


@contextlib.contextmanager
def open_data(stores: Sequence[Path]) -> Iterator[Data]:
    """Open aligned stores; their fields are named as the loader names them (`logits@2`: the second store's)."""
    from kdcache.loader.fields import named_fields
    from kdcache.loader.views import views_spec

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
        arrays = {name: field.array for name, field in fields.items()}
        outputs = outputs_for(arrays, first.plan.classes)
        taught = next((fields[name] for name in ("logits", "view01.logits") if name in fields), None)
        outputs = outputs or (taught is not None and taught.array.shape[-1])
        if not outputs:
            raise UsageError(f"{first.path}: the store does not say how many classes there are and has no logits")
        shape = fields["label"].array.shape if "label" in fields else ()
        tokens = len(fields["input"].array.shape) == 1 and fields["input"].array.dtype.startswith("int")
        if tokens and "label" not in fields and "logits" in fields and len(fields["logits"].array.shape) > 1:
            raise UsageError(
                f"{first.path}: its logits are {fields['logits'].array}, those of a sequence, and it has no labels to "
                "say which positions count; zip the store that has them, or dump it from a text source"
            )
        if len(shape) > 1:
            raise UsageError(
                f"{first.path}: labels {fields['label'].array} of inputs {fields['input'].array}: a row has one label, "
                "or those [P] of a sequence of tokens or of an image's pixels"
            )
        scored = _count(named["label"][0]) if "label" in fields else np.zeros(first.rows, np.int32)
        yield Data(
            readers,
            fields,
            {"fidelity": {name: _measured(reader, field) for name, (reader, field) in named.items()}},
            fields["input"].array,
            int(outputs),
            views_spec(readers),
            first.read_column("id"),
            scored,
            sequence_positions(arrays),
        )


def _measured(reader: StoreReader, field: StoredField) -> Any:
    """What a store's manifest says of how well a field was kept; {} where it says nothing."""
    found = reader.manifest.facts.get("fidelity")
    return found.get(field.name, {}) if isinstance(found, Mapping) else {}


def _count(reader: StoreReader) -> NDArray[np.int32]:
    """How many labels at least 0 each row has; read in runs, so that a large store of sequences needs no memory."""
    step = max(1, _READ_BYTES // reader.columns["label"].width)
    found = np.empty(reader.rows, np.int32)
    for start in range(0, reader.rows, step):
        labels = reader.read_column("label", start, start + step)
        found[start : start + step] = (labels >= 0).reshape(len(labels), -1).sum(axis=1)
    return found
