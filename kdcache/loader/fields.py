"""Fields of one or several aligned stores: which store each comes from, and its tensor from gathered bytes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from kdcache.codecs import CODECS, Codec, QuantisedLogits, Targets
from kdcache.errors import StoreDamaged, StoreMismatch, UsageError
from kdcache.fingerprint import canonical
from kdcache.loader.pool import Column
from kdcache.loader.views import view_fields
from kdcache.near_misses import near_misses
from kdcache.store import StoredField, StoreReader
from kdcache.store.guard import safe

__all__ = ["Decoder", "named_fields", "zip_fields"]

_SHARED = ("id", "label", "input", "segment")  # the same in aligned stores, so any one will do


class Decoder:
    """One field: its columns, and how their bytes become targets [B, *shape] on `device`."""

    def __init__(self, reader: StoreReader, field: StoredField, device: torch.device) -> None:
        if field.codec not in CODECS:
            raise StoreMismatch(
                f"{reader.path}: field {field.name!r} has codec {field.codec!r}, this kdcache knows "
                f"{', '.join(sorted(CODECS))}; install the kdcache that wrote the store"
            )
        self._field, self._device, self._path, self._codec = field, device, reader.path, CODECS[field.codec]
        _check_configuration(reader, field, self._codec)
        self._host_tables = {name: torch.from_numpy(values) for name, values in reader.table(field.name).items()}
        self._tables = {name: table.to(device) for name, table in self._host_tables.items()}
        self._arrays = {suffix: (getattr(torch, array.dtype), array.shape) for suffix, array in field.columns.items()}
        self.columns = [Column(reader, field.column(suffix), a.width) for suffix, a in field.columns.items()]
        self.width = field.width

    def __call__(self, gathered: Sequence[Tensor]) -> Targets:
        """From the uint8 [B, width] of each of `columns`; StoreDamaged where a value cannot be."""
        stored = {
            suffix: values.view(dtype).reshape(-1, *shape)
            for (suffix, (dtype, shape)), values in zip(self._arrays.items(), gathered, strict=True)
        }
        field = self._field
        try:
            if self._device.type != "cpu":
                self._codec.check(stored, field.array, field.configuration, self._host_tables)
                stored = {suffix: values.to(self._device, non_blocking=True) for suffix, values in stored.items()}
            decoded = self._codec.decode(stored, field.array, field.configuration, self._tables)
        except StoreDamaged as error:
            raise StoreDamaged(f"{self._path}: field {field.name!r}: {error}") from error
        # Only objectives on logits know what to do with codes; a vector of features is wanted as it was.
        return decoded.dense() if isinstance(decoded, QuantisedLogits) and field.name != "logits" else decoded


def _check_configuration(reader: StoreReader, field: StoredField, codec: Codec) -> None:
    """StoreDamaged unless the codec, asked anew, wants the configuration and columns that the plan states.

    A plan of an earlier kdcache lacks the keys that came later; the codec's EARLY says what their absence means.
    """
    stated = {**getattr(codec, "EARLY", {}), **field.configuration}
    try:
        configuration = codec.configure(stated, field.array)
        # As JSON, since to Python 8.0 and True are the integers 8 and 1, and to codecs they are not.
        same = canonical(configuration) == canonical(stated)
        same = same and codec.columns(field.array, configuration) == field.columns
    except UsageError as error:
        raise StoreDamaged(f"{reader.path}: field {field.name!r}: {safe(error, 500)}") from error
    if not same:
        raise StoreDamaged(
            f"{reader.path}: field {field.name!r}: its columns are not those of codec {field.codec!r} with the "
            "configuration in plan.json; restore the store from a good copy"
        )


def named_fields(readers: Sequence[StoreReader]) -> dict[str, tuple[StoreReader, StoredField]]:
    """Every field of aligned stores by name; StoreMismatch where they are not aligned.

    Aligned stores share what is not a teacher's, such as id, label and input, so the first that has one will do. Of any
    other name that several stores have, the first store's keeps it and the k-th store's is `name@k`, such as `logits@2`
    for a second teacher's.
    """
    for reader in readers[1:]:
        readers[0].plan.check_aligned(reader.plan, readers[0].path, reader.path)
    found: dict[str, tuple[StoreReader, StoredField]] = {}
    for number, reader in enumerate(readers, 1):
        for name, field in reader.fields.items():
            if name not in found:
                found[name] = reader, field
            elif name not in _SHARED and not (field.shared and found[name][1] == field):
                found[f"{name}@{number}"] = reader, field
    return found


def zip_fields(
    readers: Sequence[StoreReader], wanted: Sequence[str] | None, view: int = 0
) -> Mapping[str, tuple[StoreReader, StoredField]]:
    """The wanted ones of `named_fields` (None: all), `id` always first; UsageError for a name that none has.

    `view`: 0, or the one whose fields are given without its prefix (see `view_fields`); then with `input` comes all
    that it takes to replay the view, under names that begin with `view.`.
    """
    found = view_fields(named_fields(readers), view)
    if isinstance(wanted, str):
        raise UsageError(f"fields = {wanted!r}: must be a list of names, for instance [{wanted!r}]")
    if wanted is None:
        wanted = list(found)
    if view and "input" in wanted:
        wanted = [*wanted, *(name for name in found if name.startswith("view."))]
    for name in wanted:
        if name not in found:
            raise UsageError(
                f"{readers[0].path}: has no field {name!r}; {near_misses(name, found)}; dump it, or "
                "zip a store that has it"
            )
    return {name: found[name] for name in dict.fromkeys(["id", *wanted])}
