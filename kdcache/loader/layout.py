"""What each field of a batch is gathered from: which columns of the pool, at whose places, for which views."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kdcache.codecs import Targets
from kdcache.errors import StoreDamaged
from kdcache.loader.fields import Decoder, zip_fields
from kdcache.loader.pool import Column
from kdcache.store import StoredField, StoreReader
from kdcache.views import ViewsSpec, check_parameters

__all__ = ["Gathered", "Layout", "lay_out"]

_PARTNER = "view.partner"


@dataclass(frozen=True)
class Gathered:
    """One field of a batch: its decoder, for each view that the batch holds the numbers of its columns in the pool, and
    whether its rows are the partners of the batch's own."""

    decoder: Decoder
    columns: tuple[tuple[int, ...], ...]
    partners: bool = False


@dataclass(frozen=True)
class Layout:
    """The fields of a batch by name, the pool's columns, and for each view the one that says how far partners are."""

    fields: Mapping[str, Gathered]
    columns: Sequence[Column]
    partner: tuple[int, ...] = ()
    path: str = ""

    @property
    def views(self) -> int:
        """How many views of each row a batch holds."""
        return len(next(iter(self.fields.values())).columns)


class _Parameters(Decoder):
    """Parameters of a view, every one of which is looked at before it is used."""

    def __init__(self, reader: StoreReader, field: StoredField, device: torch.device, spec: ViewsSpec) -> None:
        super().__init__(reader, field, device)
        self._spec = spec

    def __call__(self, gathered: Sequence[Tensor]) -> Targets:
        try:
            check_parameters(gathered[0].view(torch.int16).reshape(-1, len(self._spec.layout)), self._spec)
        except StoreDamaged as error:
            raise StoreDamaged(f"{self._path}: the views' parameters: {error}; restore it from a good copy") from error
        return super().__call__(gathered)


def lay_out(
    readers: Sequence[StoreReader],
    wanted: Sequence[str] | None,
    views: tuple[int, ...],
    spec: ViewsSpec | None,
    device: torch.device,
    decoders: dict[str, Decoder],
) -> Layout:
    """The layout of batches that hold `views`, one after the other; (0,): the images as they are.

    `decoders` of the fields are taken from there, and those that are missing are put there: every view of a field has
    the same one (`views_spec` has seen to it).
    """
    named = [zip_fields(readers, wanted, view) for view in views]
    columns: list[Column] = []
    places: dict[tuple[int, str], int] = {}

    def numbers(reader: StoreReader, field: StoredField) -> tuple[int, ...]:
        found = []
        for suffix, array in field.columns.items():
            key = id(reader), field.column(suffix)
            if key not in places:
                places[key] = len(columns)
                columns.append(Column(reader, field.column(suffix), array.width))
            found.append(places[key])
        return tuple(found)

    fields: dict[str, Gathered] = {}
    for name, (reader, field) in named[0].items():
        if name not in decoders:
            checked = spec if name == "view.params" else None
            decoders[name] = _Parameters(reader, field, device, checked) if checked else Decoder(reader, field, device)
        fields[name] = Gathered(decoders[name], tuple(numbers(*one[name]) for one in named))
    partner = fields.pop(_PARTNER, None)
    if partner is None or spec is None:
        return Layout(fields, columns)
    for name in ("input", "view.params"):
        fields[f"view.partner.{name.removeprefix('view.')}"] = Gathered(decoders[name], fields[name].columns, True)
    return Layout(fields, columns, tuple(one for (one,) in partner.columns), str(readers[0].path))
