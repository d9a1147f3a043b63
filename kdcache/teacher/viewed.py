"""Views at dump time: their fields, their parameters, and the images of a unit as a view shows them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
import xxhash
from numpy.typing import NDArray
from torch import Tensor

from kdcache.config import Recipe
from kdcache.errors import UsageError
from kdcache.sources import Source
from kdcache.store import Plan, StoredField, plain_field
from kdcache.store.schema import MOST_FIELDS
from kdcache.teacher.attack import attack
from kdcache.teacher.frozen import FrozenTeacher
from kdcache.views import ViewsSpec, draw, replay
from kdcache.views.spec import view_name

__all__ = ["UnitViews", "base_name", "looks_of", "pilot_source", "spec_of", "view_fields", "views_of"]

Columns = dict[str, NDArray[Any]]


def views_of(recipe: Recipe, source: Source) -> ViewsSpec | None:
    """The recipe's views of the source's inputs; UsageError where these are no images."""
    config = recipe.views
    if config is None:
        return None
    if recipe.teacher and recipe.teacher.inputs[0] != "input":
        raise UsageError(
            f"views: change the field 'input', and the teacher's first input is {recipe.teacher.inputs[0]!r}"
        )
    return ViewsSpec(config, source.arrays["input"])


def spec_of(plan: Plan) -> ViewsSpec | None:
    """The views of a plan of ours."""
    if plan.views is None:
        return None
    return ViewsSpec.from_json(plan.views, next(f.array for f in plan.fields if f.name == "input"), "the plan")


def view_fields(plain: Sequence[StoredField], given: Sequence[StoredField], spec: ViewsSpec) -> tuple[StoredField, ...]:
    """Of every view its parameters and the teacher's fields `given`, after the `plain` ones of the source."""
    if taken := [f.name for f in plain if f.name.startswith("view") and f.name[4:6].isdigit()]:
        raise UsageError(f"views: the source's array {taken[0]!r} has the name of a view's; give it another")
    fields = [*plain, *(given if spec.config.plain else ())]
    for view in range(1, spec.count + 1):
        fields += [plain_field(view_name(view, name), array, shared=True) for name, array in spec.fields().items()]
        fields += [dataclasses.replace(field, name=view_name(view, field.name)) for field in given]
    if len(fields) > MOST_FIELDS:
        raise UsageError(f"views: {spec.count} views make {len(fields)} fields, a store has {MOST_FIELDS}; lower count")
    return tuple(fields)


def looks_of(plan: Plan) -> int:
    """How many times the teacher's work on one image a dump does: once for each view, and where it is attacked about
    three times as much for each step, there and back."""
    spec = spec_of(plan)
    if spec is None:
        return 1
    steps = spec.config.attack.steps if spec.config.attack else 0
    return spec.config.plain + spec.count * (1 + 3 * steps)


def base_name(plan: Plan, name: str) -> str:
    """A field's name without the prefix of its view."""
    prefix, _, rest = name.partition(".")
    return rest if prefix in plan.view_names else name


def pilot_source(source: Source, plan: Plan, recipe: Recipe) -> Source:
    """What codecs are fitted and chosen on: the source, or where there are views its images as view 1 shows them."""
    spec = views_of(recipe, source)
    return _ViewedSource(source, plan, spec) if spec else source


class _ViewedSource:
    """A source whose images are those of view 1, before any attack: what codecs are fitted and chosen on.

    Its rows are read in any order; a row's partner is the one that it has in the plan.
    """

    def __init__(self, source: Source, plan: Plan, spec: ViewsSpec) -> None:
        # An attack is left out: it takes many times a batch's own time, and the drift watch sees to what comes of it.
        self._source, self._spec = source, ViewsSpec(spec.config.model_copy(update={"attack": None}), spec.image)
        self._order = plan.permutation()
        self._rows = np.empty_like(self._order)
        self._rows[self._order] = np.arange(plan.rows)
        self._ids, self._starts = source.ids(), plan.block_starts

    def __getattr__(self, name: str) -> Any:
        return getattr(self._source, name)

    def __len__(self) -> int:
        return len(self._source)

    def read(self, ids: NDArray[np.int64]) -> dict[str, NDArray[Any]]:
        """The rows of these ids, their images augmented."""
        found = self._source.read(ids)
        rows = self._rows[np.searchsorted(self._ids, ids)]
        drawn = self._draw(rows)
        given: dict[str, Any] = {}
        if self._spec.mixes:
            others = rows + drawn["partner"]
            given["partners"] = torch.from_numpy(self._source.read(self._ids[self._order[others]])["input"])
            given["partner_parameters"] = torch.from_numpy(self._draw(others)["params"])
        params = torch.from_numpy(drawn["params"]) if "params" in drawn else None
        found["input"] = replay(torch.from_numpy(found["input"]), params, self._spec, **given).numpy()
        return found

    def _draw(self, rows: NDArray[np.int64]) -> dict[str, NDArray[Any]]:
        block = np.searchsorted(self._starts, rows, side="right") - 1
        first = self._starts[block]
        ids = self._ids[self._order[rows]]
        return draw(self._spec, 1, ids, rows - first, self._starts[block + 1] - first)


class UnitViews:
    """The views of one unit: their parameters in `columns`, its images, and the digests of these block by block."""

    def __init__(self, plan: Plan, spec: ViewsSpec, ids: NDArray[np.int64], columns: Columns) -> None:
        self._block_rows, self._spec, self._columns = plan.block_rows, spec, columns
        self._hashes = {view: xxhash.xxh3_128() for view in range(1, spec.count + 1)}
        self._digests: dict[int, list[str]] = {view: [] for view in self._hashes}
        place = np.arange(len(ids))
        within = place % plan.block_rows
        sizes = np.minimum(plan.block_rows, len(ids) - (place - within))
        for view in self._hashes:
            for name, values in draw(spec, view, ids, within, sizes).items():
                columns[view_name(view, name)][:] = values

    @property
    def digests(self) -> dict[str, list[str]]:
        """By view the xxh3_128 of each block's images, once all were given."""
        return {f"view{view:02d}": digests for view, digests in self._digests.items()}

    def whole_blocks(self, batches: Iterator[tuple[int, int]]) -> Iterator[tuple[int, int]]:
        """The same batches, each once every row of its blocks has been read, where partners are needed."""
        waiting: list[tuple[int, int]] = []
        rows = len(self._columns["id"])
        for batch in batches:
            waiting.append(batch)
            while waiting and (not self._spec.mixes or self._end(waiting[0][1], rows) <= batch[1]):
                yield waiting.pop(0)

    def _end(self, last: int, rows: int) -> int:
        return min(-(-last // self._block_rows) * self._block_rows, rows)

    def images(self, view: int, first: int, last: int, teacher: FrozenTeacher, others: Sequence[Tensor]) -> Tensor:
        """Rows first to last, uint8 on the teacher's device; to be asked for in ascending order, each once."""
        columns, spec, device = self._columns, self._spec, teacher.device

        def taken(name: str, rows: Any) -> Tensor:
            return torch.from_numpy(columns[name][rows]).to(device)

        rows = slice(first, last)
        params = taken(view_name(view, "params"), rows) if spec.layout else None
        given: dict[str, Tensor] = {}
        if spec.mixes:
            partners = np.arange(first, last) + columns[view_name(view, "partner")][rows]
            given["partners"] = taken("input", partners)
            given["partner_parameters"] = taken(view_name(view, "params"), partners)
        if spec.config.attack:
            calm = ViewsSpec(spec.config.model_copy(update={"attack": None}), spec.image)
            still = replay(taken("input", rows), params, calm, **given)
            delta = attack(
                teacher, still, columns["id"][rows], spec.config.attack, f"{spec.config.seed}|{view}", others
            )
            columns[view_name(view, "delta")][rows] = delta.cpu().numpy()
            given["delta"] = delta
        images = replay(taken("input", rows), params, spec, **given)
        self._hash(view, first, last, images.cpu().numpy())
        return images

    def _hash(self, view: int, first: int, last: int, images: NDArray[np.uint8]) -> None:
        """Feed the images to their blocks' digests; a batch may end one block and begin another."""
        rows, at = len(self._columns["id"]), first
        while at < last:
            end = min(self._end(at + 1, rows), last)
            self._hashes[view].update(images[at - first : end - first].data)
            if end == self._end(at + 1, rows):
                self._digests[view].append(self._hashes[view].hexdigest())
                self._hashes[view].reset()
            at = end
