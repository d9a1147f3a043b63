"""One unit, from sample ids to the columns that will be committed: batches → teacher → codec → kept buffers."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kdcache.codecs import CODECS
from kdcache.errors import Interrupted, UsageError
from kdcache.interrupt import StopFlag
from kdcache.sources import Source
from kdcache.store import Plan, StoredField
from kdcache.teacher.batch import run_batch, token_chunks
from kdcache.teacher.fidelity import UnitFidelity
from kdcache.teacher.frozen import FrozenTeacher
from kdcache.teacher.positions import position_keys
from kdcache.teacher.reductions import reduced
from kdcache.teacher.viewed import UnitViews, spec_of
from kdcache.views import ViewsSpec
from kdcache.views.spec import view_name

__all__ = ["UnitBuffers", "fill_unit"]

Columns = dict[str, NDArray[Any]]
_AHEAD = 4


class UnitBuffers:
    """The columns of one unit, allocated once and filled again for every unit."""

    def __init__(self, plan: Plan) -> None:
        rows = min(plan.rows, plan.unit_rows)
        self._arrays = {name: np.empty((rows, *a.shape), a.numpy) for name, a in plan.columns.items()}

    def view(self, rows: int) -> Columns:
        """The first `rows` rows of every column."""
        return {name: values[:rows] for name, values in self._arrays.items()}


def fill_unit(
    plan: Plan,
    unit: int,
    ids: NDArray[np.int64],
    source: Source,
    teacher: FrozenTeacher | None,
    tables: dict[str, dict[str, Tensor]],
    columns: Columns,
    stop: StopFlag,
    advance: Callable[[int], None],
) -> tuple[dict[str, Any], dict[str, list[str]] | None]:
    """Fill `columns` with the unit's rows (`ids` in plan order); returns its facts (see `UnitFidelity`), and of views
    the digests of their images.

    Reading runs ahead in a thread. Raises TeacherError naming the samples, Interrupted when `stop` is.
    """
    columns["id"][:] = ids
    batches = _read_ahead(plan, ids, source, columns, stop)
    spec = spec_of(plan)
    views = UnitViews(plan, spec, ids, columns) if spec else None
    if views:
        batches = views.whole_blocks(batches)
    measured = {
        field.name: UnitFidelity(field, whole=unit == 0)
        for field in plan.fields
        if field.name in ("logits", view_name(1, "logits"))
    }
    for first, last in batches:
        for view in _shown(spec) if teacher else ():
            assert teacher is not None
            some = ids[first:last]
            inputs, *others = (torch.from_numpy(columns[name][first:last]) for name in teacher.config.inputs)
            if views and view:
                inputs = views.images(view, first, last, teacher, others)
            outputs = run_batch(teacher, inputs, some, _segment(columns, first, last), others)
            for field in plan.fields:
                for start, end, whole, keys in _pieces(field, view, outputs, teacher, some):
                    values = reduced(whole, field.reduction, tables[field.name])
                    encoded = CODECS[field.codec].encode(values, field.configuration, tables[field.name], keys)
                    _put(field, encoded, columns, (first, last), (start, end))
                    if field.name in measured:
                        measured[field.name].add(values, encoded, tables[field.name])
        advance(last - first)
    facts: dict[str, Any] = {}
    for one in measured.values():
        for key, table in one.facts().items():
            facts[key] = {**facts.get(key, {}), **table}
    return facts, views.digests if views else None


def _shown(spec: ViewsSpec | None) -> list[int]:
    """The views that the teacher sees of every image; 0 is the image as it is."""
    if spec is None:
        return [0]
    return [*([0] if spec.config.plain else []), *range(1, spec.count + 1)]


def _read_ahead(
    plan: Plan, ids: NDArray[np.int64], source: Source, columns: Columns, stop: StopFlag
) -> Iterator[tuple[int, int]]:
    """Batch ranges of the unit, each once its input and label stand in `columns`."""
    ready: queue.Queue[tuple[int, int] | BaseException | None] = queue.Queue(_AHEAD)
    given_up = threading.Event()
    names = [name for name in source.arrays if name in columns]

    def put(item: tuple[int, int] | BaseException | None) -> bool:
        while not given_up.is_set():
            try:
                ready.put(item, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def read() -> None:
        try:
            for first in range(0, len(ids), plan.batch_rows):
                last = min(first + plan.batch_rows, len(ids))
                rows = source.read(ids[first:last])
                for name in names:
                    np.copyto(columns[name][first:last], rows[name], casting="no")
                if not put((first, last)):
                    return
            put(None)
        except BaseException as error:
            put(error)

    thread = threading.Thread(target=read, name="kdcache-source", daemon=True)
    thread.start()
    try:
        while (item := ready.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            if stop.name:
                raise Interrupted(
                    f"stopped by {stop.name}; committed units are kept, the same command goes on from them"
                )
            yield item
    finally:
        given_up.set()
        thread.join()


def _segment(columns: Columns, first: int, last: int) -> Tensor | None:
    return torch.from_numpy(columns["segment"][first:last].astype(np.int64)) if "segment" in columns else None


def _pieces(
    field: StoredField, view: int, outputs: dict[str, Tensor], teacher: FrozenTeacher, ids: NDArray[np.int64]
) -> Iterator[tuple[int, int, Tensor, Tensor]]:
    """(first, last, values, keys) of what a batch gives a field: all its rows at once, by sample id. Logits at each of
    P positions are rows of their own, by id * P + position, those of a language model chunk by chunk."""
    numbers = torch.from_numpy(ids)
    prefix = view_name(view, "") if view else ""
    name = field.name.removeprefix(prefix)
    if field.name == prefix + name and name in outputs:
        values, keys = outputs[name], numbers
        if name == "logits" and values.ndim == 3:
            keys, values = position_keys(numbers, values.shape[1]), values.flatten(0, 1)
        yield 0, len(values), values, keys.to(values.device)
    elif field.name == "logits" and "hidden" in outputs:
        hidden = outputs["hidden"]
        targets = field.array.shape[0]
        if hidden.shape[1] != targets:
            raise UsageError(
                f"teacher {teacher.config.model}: gives {hidden.shape[1]} targets a row, the store holds exactly "
                f"{targets}, one for each label"
            )
        keys = position_keys(numbers, targets).to(hidden.device)
        for first, last, values in token_chunks(teacher, hidden, ids):
            yield first, last, values, keys[first:last]


def _put(
    field: StoredField, encoded: dict[str, Tensor], columns: Columns, rows: tuple[int, int], piece: tuple[int, int]
) -> None:
    """Copy encoded columns to their place: of the batch's `rows`, with their positions laid flat, the `piece`."""
    for suffix, tensor in encoded.items():
        target = torch.from_numpy(columns[field.column(suffix)][slice(*rows)])
        if field.columns[suffix].dtype == "bfloat16":
            target = target.view(torch.bfloat16)
        target.flatten(0, target.ndim - tensor.ndim)[slice(*piece)].copy_(tensor)
