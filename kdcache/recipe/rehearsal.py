"""Every term of an objective called once before hours of work: whatever it refuses, it refuses now."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from kdcache.errors import KdcacheError, UsageError
from kdcache.store import StoredField

if TYPE_CHECKING:
    import torch

    from kdcache.codecs import Targets
    from kdcache.objectives import Objective
    from kdcache.sources import Source

__all__ = ["rehearse"]

Shape = tuple[int, ...]
_POSITIONS = 8  # of sequences, whose losses see tokens as rows


def rehearse(
    objective: Objective,
    fields: Mapping[str, StoredField],
    shapes: Mapping[str, Shape],
    source: Source,
    sequences: bool,
) -> None:
    """UsageError for a term that refuses a value of its options or a shape, or does not give a finite number.

    It is given random numbers of the `shapes` of the student's outputs and taps, and of each of the store's `fields`
    what a reader would give: of the source its own first rows, of a teacher random numbers through the field's codec.
    `sequences`: rows are tokens, of which the losses see some positions as rows of their own.
    """
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        adapters = objective.adapters(shapes, source.ids())
        rows = _POSITIONS if sequences else max(2, objective.together)
        plain = {} if sequences else _first_rows(source, rows)
        batch = {name: _entry(name, fields[name], plain, rows, objective.classes) for name in objective.fields}
        outputs = {
            name: torch.randn(rows, *(shape[-1:] if sequences else shape), requires_grad=True)
            for name, shape in shapes.items()
        }
        for term in objective.terms:
            student = [outputs[name] for name in term.outputs if name in outputs]
            if len(student) < len(term.outputs):
                continue  # of a language model, whose logits are never there together
            module = adapters[term.adapter] if term.spec.module else None
            try:
                found = term(student, [batch[name] for name in term.fields], module)
            except KdcacheError:
                raise
            except Exception as error:  # torch's own words about shapes
                theirs = [str(fields[name].array) for name in term.fields]
                raise UsageError(
                    f"objective {term.name}: it cannot compare {[list(shapes[name]) for name in term.outputs]} of the "
                    f"student, {', '.join(term.outputs)}, with {', '.join(theirs)} of the store, "
                    f"{', '.join(term.fields)} ({type(error).__name__}: {error}): choose another tap, output or field"
                ) from error
            values = [float(value.detach()) for value in (found if isinstance(found, tuple) else (found,))]
            if not all(map(math.isfinite, values)):
                given = ", ".join(f"{key} = {value}" for key, value in term.options.items())
                raise UsageError(
                    f"objective {term.name}: it gives {values[0]} for random numbers, with {given or 'its defaults'}: "
                    "take less extreme options"
                )


def _first_rows(source: Source, rows: int) -> dict[str, torch.Tensor]:
    """The plain fields of so many rows, the first again where there are fewer."""
    import torch

    ids = np.resize(source.ids()[:rows], rows)
    read = source.read(ids)
    return {"id": torch.from_numpy(ids), **{name: torch.from_numpy(np.array(values)) for name, values in read.items()}}


def _entry(name: str, field: StoredField, plain: Mapping[str, torch.Tensor], rows: int, classes: int) -> Targets:
    """What a batch of the store holds under this name."""
    import torch

    from kdcache.codecs import CODECS, QuantisedLogits

    if name in plain:
        return plain[name]
    array, sequence = field.array, not plain
    if not array.dtype.startswith(("float", "bfloat")):  # labels of positions
        return torch.randint(classes, (rows,))
    shape = array.shape[-1:] if sequence else array.shape
    values = torch.randn(rows, *shape)
    codec = CODECS.get(field.codec)
    if codec is None or codec.NEEDS_PILOT or field.codec == "dense":
        return values
    reduced = type(array)(array.dtype, shape)
    keys = torch.arange(values[..., 0].numel()).reshape(values.shape[:-1])
    stored = codec.encode(values, field.configuration, {}, keys)
    decoded = codec.decode(stored, reduced, field.configuration, {})
    # As a reader does: only losses on logits know what to do with codes.
    return decoded.dense() if isinstance(decoded, QuantisedLogits) and field.name != "logits" else decoded
