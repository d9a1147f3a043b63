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

from kdcache.codecs import CODECS, fidelity
from kdcache.errors import Interrupted
from kdcache.interrupt import StopFlag
from kdcache.sources import Source
from kdcache.store import Plan, StoredField
from kdcache.teacher.batch import run_batch
from kdcache.teacher.frozen import FrozenTeacher

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
) -> dict[str, Any]:
    """Fill `columns` with the unit's rows (`ids` in plan order); returns its facts: fidelity, measured on unit 0.

    Reading runs ahead in a thread. Raises TeacherError naming the samples, Interrupted when `stop` is.
    """
    columns["id"][:] = ids
    logits = next((field for field in plan.fields if field.name == "logits"), None)
    measured = _Fidelity(logits) if unit == 0 and logits else None
    for first, last in _read_ahead(plan, ids, source, columns, stop):
        if teacher:
            outputs = run_batch(teacher, torch.from_numpy(columns["input"][first:last]), ids[first:last])
            for field in plan.fields:
                if field.name in outputs:
                    encoded = _encode(field, outputs[field.name], tables[field.name], columns, first, last)
                    if measured and field is logits:
                        measured.add(outputs[field.name], encoded, tables[field.name])
        advance(last - first)
    return measured.facts() if measured else {}


def _read_ahead(
    plan: Plan, ids: NDArray[np.int64], source: Source, columns: Columns, stop: StopFlag
) -> Iterator[tuple[int, int]]:
    """Batch ranges of the unit, each once its input and label stand in `columns`."""
    ready: queue.Queue[tuple[int, int] | BaseException | None] = queue.Queue(_AHEAD)
    given_up = threading.Event()
    names = [name for name in ("input", "label") if name in columns]

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


def _encode(
    field: StoredField, values: Tensor, tables: dict[str, Tensor], columns: Columns, first: int, last: int
) -> dict[str, Tensor]:
    encoded = CODECS[field.codec].encode(values, field.configuration, tables)
    for suffix, tensor in encoded.items():
        target = torch.from_numpy(columns[field.column(suffix)][first:last])
        if field.columns[suffix].dtype == "bfloat16":
            target = target.view(torch.bfloat16)
        target.copy_(tensor)
    return encoded


class _Fidelity:
    """The mean over the unit's rows of KL(teacher ‖ decoded) of the logits, in nats by temperature."""

    def __init__(self, field: StoredField) -> None:
        self._field = field
        self._sums: dict[str, float] = {}
        self._rows = 0

    def add(self, values: Tensor, encoded: dict[str, Tensor], tables: dict[str, Tensor]) -> None:
        field = self._field
        decoded = CODECS[field.codec].decode(encoded, field.array, field.configuration, tables)
        for temperature, value in fidelity(values, decoded)["kl"].items():
            self._sums[temperature] = self._sums.get(temperature, 0.0) + value * len(values)
        self._rows += len(values)

    def facts(self) -> dict[str, Any]:
        kl = {temperature: total / self._rows for temperature, total in self._sums.items()}
        return {"fidelity": {self._field.name: {"kl": kl, "bytes_per_row": self._field.width, "rows": self._rows}}}
