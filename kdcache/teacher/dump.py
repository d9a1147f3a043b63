"""Stage one: run the teacher once over every row of the plan and commit its outputs, unit by unit."""

from __future__ import annotations

import os
import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from kdcache.config import Recipe
from kdcache.errors import StoreMismatch
from kdcache.interrupt import StopFlag, stop_requests
from kdcache.sources import Source, open_source
from kdcache.store import Plan, StoreWriter, read_plan
from kdcache.store.manifest import Manifest
from kdcache.teacher.batch import run_ids, token_chunks
from kdcache.teacher.budget import choices
from kdcache.teacher.drift import check_drift
from kdcache.teacher.frozen import FrozenTeacher, load_teacher
from kdcache.teacher.planning import fit_tables, input_spec_of, inputs_plan, tables_on, teacher_plan
from kdcache.teacher.unit import Columns, UnitBuffers, fill_unit
from kdcache.teacher.viewed import looks_of, pilot_source

__all__ = ["DumpResult", "Estimate", "Progress", "dump", "estimate"]

_PILOT_BATCHES = 4


class Progress(Protocol):
    """What is told of a dump while it runs; `written` comes from another thread than the rest."""

    def begin(self, rows: int, done: int) -> None:
        """`rows` in the store, `done` of them committed before."""

    def advance(self, rows: int) -> None:
        """So many more rows have been through the teacher."""

    def written(self, size: int) -> None:
        """A unit of `size` bytes was committed."""


@dataclass(frozen=True)
class DumpResult:
    """The finished store, this process's share of the work, and the plan's choices for a budget."""

    manifest: Manifest
    rows: int
    seconds: float
    budget: dict[str, Any]


@dataclass(frozen=True)
class Estimate:
    """What a dump would be: the plan, the bytes per row of each field, and the rate of a few pilot batches."""

    plan: Plan
    field_bytes: dict[str, int]
    samples_per_second: float

    @property
    def total_bytes(self) -> int:
        """Bytes of all rows before compression."""
        return self.plan.rows * sum(self.field_bytes.values())

    @property
    def seconds(self) -> float:
        """Expected duration with one process."""
        return self.plan.rows / self.samples_per_second


class _Silent:
    def begin(self, rows: int, done: int) -> None: ...
    def advance(self, rows: int) -> None: ...
    def written(self, size: int) -> None: ...


def dump(
    recipe: Recipe,
    out: Path,
    *,
    weights: Path | None = None,
    like: Path | None = None,
    progress: Progress | None = None,
) -> DumpResult:
    """Write the recipe's store to `out`; without a [teacher], its inputs and labels alone.

    Committed units are skipped, so the same call goes on after any interruption, and any number of processes may make
    it at once (`torchrun` ranks begin apart). SIGINT and SIGTERM drop the open unit and raise Interrupted. Raises
    StoreMismatch before any teacher runs if `out` holds a store with another plan.
    """
    progress = progress or _Silent()
    found = read_plan(out) if out.is_dir() else None
    source, teacher, plan = _prepare(recipe, weights, like, found, out)
    if found:
        plan.check_same(found, out)
    seen = pilot_source(source, plan, recipe)
    tables = fit_tables(plan, seen, teacher) if teacher and not found else {}
    writer = StoreWriter(out, plan, tables)
    missing = writer.missing()
    progress.begin(plan.rows, plan.rows - sum(_rows(plan, unit) for unit in missing))
    start = time.perf_counter()
    with stop_requests() as stop:
        rows = _write_units(writer, source, teacher, stop, progress)
    check_drift(writer)
    manifest = writer.finish()
    assert manifest is not None, "every unit was committed, by this process or by another"
    return DumpResult(manifest, rows, time.perf_counter() - start, writer.plan.budget)


def estimate(recipe: Recipe, *, weights: Path | None = None, like: Path | None = None) -> Estimate:
    """What `dump` would write and how long it would take, measured on a few batches; nothing is written."""
    source, teacher, plan = _prepare(recipe, weights, like)
    ids = source.ids()[plan.permutation()[: _PILOT_BATCHES * plan.batch_rows]]
    start, counted = time.perf_counter(), 0
    for first in range(0, len(ids), plan.batch_rows):
        some = ids[first : first + plan.batch_rows]
        if teacher:
            outputs = run_ids(teacher, source, some)
            for _ in token_chunks(teacher, outputs["hidden"], some) if "hidden" in outputs else ():
                pass  # a language model's head is a good part of its work
        else:
            source.read(some)
        if first == 0 and len(ids) > plan.batch_rows:
            start = time.perf_counter()  # the first batch pays for warming up
        else:
            counted += len(some)
    rate = counted / max(time.perf_counter() - start, 1e-9) / looks_of(plan)
    return Estimate(plan, {f.name: f.width for f in plan.fields}, rate)


def _prepare(
    recipe: Recipe, weights: Path | None, like: Path | None, found: Plan | None = None, out: Path | None = None
) -> tuple[Source, FrozenTeacher | None, Plan]:
    """Everything up to the plan; `found` is the one in `out`, whose choices for a budget are taken over."""
    source = open_source(recipe.source)
    plan = inputs_plan(recipe, source, like)
    if recipe.teacher is None:
        return source, None, plan
    teacher = load_teacher(recipe.teacher, source.arrays, source.classes, input_spec_of(plan), weights)
    chosen = choices(recipe, pilot_source(source, plan, recipe), teacher, plan, found, out)
    plan = teacher_plan(plan, recipe, source, teacher, chosen)
    if like and (other := read_plan(like)) and other.views not in (None, plan.views):
        raise StoreMismatch(
            f"--like {like}: has views, {other.views}, and this recipe's are {plan.views}; give both the same [views]"
            + (", and the same teacher where they are attacked" if "attack" in other.views else "")
        )
    return source, teacher, plan


def _write_units(
    writer: StoreWriter, source: Source, teacher: FrozenTeacher | None, stop: StopFlag, progress: Progress
) -> int:
    """Fill units one after the other while a thread encodes, hashes and commits the one before."""
    plan = writer.plan
    device = teacher.device if teacher else torch.device("cpu")
    tables = {f.name: tables_on(writer.table(f.name), device) for f in plan.fields}
    ids = source.ids()[plan.permutation()]
    with _Committer(writer, progress) as committer:
        rows = 0
        for unit in writer.work(_first_unit(plan)):
            first, last = plan.unit_range(unit)
            columns = committer.columns(last - first)
            facts, pixels = fill_unit(
                plan, unit, ids[first:last], source, teacher, tables, columns, stop, progress.advance
            )
            check_drift(writer, unit, facts)
            committer.submit(unit, columns, facts, pixels)
            rows += last - first
    return rows


class _Committer:
    """Commits units in a thread of its own, with two sets of buffers: a slow disk holds up the teacher, not memory."""

    def __init__(self, writer: StoreWriter, progress: Progress) -> None:
        self._writer, self._progress = writer, progress
        self._free: queue.Queue[UnitBuffers] = queue.Queue()
        for _ in range(min(2, writer.plan.units)):
            self._free.put(UnitBuffers(writer.plan))
        self._current: UnitBuffers | None = None
        self._work: queue.Queue[Callable[[], None] | None] = queue.Queue()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="kdcache-commit", daemon=True)

    def columns(self, rows: int) -> Columns:
        """Columns of the next unit to fill; waits until a set of buffers is free."""
        while True:
            self._raise()
            try:
                self._current = self._free.get(timeout=0.1)
                return self._current.view(rows)
            except queue.Empty:
                continue

    def submit(self, unit: int, columns: Columns, facts: dict[str, Any], pixels: dict[str, list[str]] | None) -> None:
        """Hand over the unit that was filled into the columns last given out."""
        buffers = self._current
        assert buffers is not None, "columns() comes first"

        def commit() -> None:
            self._progress.written(self._writer.write(unit, columns, facts, pixels).bytes)
            self._free.put(buffers)

        self._work.put(commit)

    def _run(self) -> None:
        while (commit := self._work.get()) is not None:
            try:
                commit()
            except BaseException as error:
                self._error = error
                return

    def _raise(self) -> None:
        if self._error is not None:
            raise self._error

    def __enter__(self) -> _Committer:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        self._work.put(None)
        self._thread.join()
        if error is None:
            self._raise()


def _rows(plan: Plan, unit: int) -> int:
    first, last = plan.unit_range(unit)
    return last - first


def _first_unit(plan: Plan) -> int:
    """Where this process begins: ranks of one `torchrun` job begin apart."""
    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    return rank * plan.units // max(world, 1)
