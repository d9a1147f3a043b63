"""Which of a store's views a loader gives, and whether this kdcache replays them as they were made."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Literal

import numpy as np
import torch
import xxhash
from torch import Tensor

from kdcache.errors import StoreDamaged, StoreMismatch, UsageError
from kdcache.store import StoredField, StoreReader, plain_field
from kdcache.views import ViewsSpec, check_parameters, replay
from kdcache.views.spec import view_name

__all__ = [
    "View",
    "check_replay",
    "check_view",
    "field_of_view",
    "verify_views",
    "view_fields",
    "views_of",
    "views_spec",
]

View = int | Literal["cycle", "all", "plain"] | None
Named = Mapping[str, tuple[StoreReader, StoredField]]


def views_spec(readers: Sequence[StoreReader]) -> ViewsSpec | None:
    """The views of aligned stores, which all have the same; None where there are none. Raises StoreDamaged."""
    plan, path = readers[0].plan, readers[0].path
    if plan.views is None:
        return None
    image = next((field for reader in readers for field in reader.plan.fields if field.name == "input"), None)
    if image is None:
        raise StoreDamaged(f"{path}: has views and no field 'input' to make them from; zip a store that has it")
    spec = ViewsSpec.from_json(plan.views, image.array, str(path))
    for reader in readers:
        for view in range(1, spec.count + 1):
            for name, array in spec.fields().items():
                found = reader.fields.get(view_name(view, name))
                if found is None or found != plain_field(found.name, array, shared=True):
                    raise StoreDamaged(
                        f"{reader.path}: field {view_name(view, name)!r} is missing or not {array}, which its views "
                        "need; restore the store from a good copy"
                    )
        _check_alike(reader, spec)
    return spec


def _check_alike(reader: StoreReader, spec: ViewsSpec) -> None:
    """StoreDamaged unless every view has the same fields, kept in the same way: one decoder is for all of them."""
    kept: list[dict[str, object]] = []
    for view in range(1, spec.count + 1):
        prefix, tables = view_name(view, ""), reader.plan.tables
        fields = [field for name, field in reader.fields.items() if name.startswith(prefix)]
        kept.append({f.name.removeprefix(prefix): (replace(f, name=""), tables.get(f.name)) for f in fields})
    for view, fields_of in enumerate(kept, 1):
        if fields_of != kept[0]:
            raise StoreDamaged(
                f"{reader.path}: view {view} does not have the fields of view 1, kept in the same way; restore the "
                "store from a good copy"
            )


def check_view(view: View, spec: ViewsSpec | None, place: str) -> View:
    """The view asked for, "plain" as None; UsageError where there is no such view."""
    if view is None or view == "plain":
        return None
    if spec is None:
        raise UsageError(f"{place}: view = {view!r}, and the store has no views; dump it with [views]")
    if view in ("cycle", "all") or (type(view) is int and 1 <= view <= spec.count):
        return view
    raise UsageError(f"{place}: view = {view!r}: take 1 to {spec.count}, 'cycle', 'all', or 'plain'")


def views_of(view: View, spec: ViewsSpec | None, epoch: int) -> tuple[int, ...]:
    """The views that an epoch's batches hold, one after the other; (0,) is the images as they are."""
    if spec is None or view is None or view == "plain":
        return (0,)
    if view == "all":
        return tuple(range(1, spec.count + 1))
    return (1 + epoch % spec.count,) if view == "cycle" else (int(view),)


def field_of_view(name: str, view: int) -> str | None:
    """What a batch calls a stored field where it shows this view; None where the field is another view's.

    `view01.logits` is `logits`, and `view01.params` is `view.params`; what belongs to no view keeps its name.
    """
    prefix, _, rest = name.partition(".")
    if not (prefix.startswith("view") and prefix[4:].isdigit() and rest):
        return name
    if prefix != f"view{view:02d}":
        return None
    return f"view.{rest}" if rest in ("params", "partner", "delta") else rest


def view_fields(named: Named, view: int) -> dict[str, tuple[StoreReader, StoredField]]:
    """The fields as a batch that shows this view calls them; 0: as they are stored.

    A field of the view stands in place of the one of the same name of the images as they are.
    """
    if view == 0:
        return dict(named)
    found = dict(named)
    for name, pair in named.items():
        called = field_of_view(name, view)
        if called != name:
            del found[name]
            if called is not None:
                found[called] = pair
    return found


def check_replay(reader: StoreReader, view: int, block: int = 0, device: str | torch.device = "cpu") -> None:
    """StoreMismatch unless the block's images, replayed here, are those that the teacher saw.

    Reads the block's inputs and parameters, replays them on `device` and compares the xxh3_128 of the images with the
    one in the shard. Damaged parameters raise StoreDamaged. The student does this for block 0 before it trains.
    """
    spec = views_spec([reader])
    if spec is None or not 1 <= view <= spec.count:
        raise UsageError(f"{reader.path}: has no view {view}")
    first, last = (int(row) for row in reader.block_starts[block : block + 2])
    unit, within = divmod(block, reader.plan.unit_rows // reader.plan.block_rows)
    place = f"{reader.path}: unit {unit}, block {within}, view {view}"

    def column(name: str) -> Tensor:
        return torch.from_numpy(reader.read_column(name, first, last)).to(device)

    images, parameters, given = column("input"), None, {}
    if spec.layout:
        numbers = torch.from_numpy(reader.read_column(view_name(view, "params"), first, last))
        try:
            check_parameters(numbers, spec)
        except StoreDamaged as error:
            raise StoreDamaged(f"{place}: {error}; restore the store from a good copy") from error
        parameters = numbers.to(device)
    if spec.mixes:
        partners = np.arange(last - first) + reader.read_column(view_name(view, "partner"), first, last)
        if ((partners < 0) | (partners >= last - first)).any():
            raise StoreDamaged(f"{place}: a row's partner is not in its block; restore the store from a good copy")
        others = torch.from_numpy(partners).to(device)
        given = {"partners": images[others]}
        if parameters is not None:
            given["partner_parameters"] = parameters[others]
    if spec.attacks:
        given["delta"] = column(view_name(view, "delta"))
    found = xxhash.xxh3_128(replay(images, parameters, spec, **given).cpu().numpy().data).hexdigest()
    expected = reader.pixels(unit)[f"view{view:02d}"][within]
    if found != expected:
        raise StoreMismatch(
            f"{place}: the images replayed here have xxh3_128 {found}, those that the teacher saw {expected}: this "
            "kdcache replays views otherwise than the one that wrote the store; use that one, or dump it again"
        )


def verify_views(reader: StoreReader, progress: Callable[[int, int], None] | None = None) -> int:
    """`check_replay` of every block and view; how many there were. `progress(done, total)` counts them."""
    spec = views_spec([reader])
    blocks, views = len(reader.block_starts) - 1, range(1, 1 + (spec.count if spec else 0))
    for block in range(blocks):
        for view in views:
            check_replay(reader, view, block)
        if progress:
            progress((block + 1) * len(views), blocks * len(views))
    return blocks * len(views)
