"""What a unit's codec keeps of the teacher, measured while the unit is being written."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from kdcache.arrays import Array
from kdcache.codecs import CODECS, SampledLogits, SparseLogits
from kdcache.codecs.fidelity import log_z_error, log_z_errors, row_errors
from kdcache.store import StoredField

__all__ = ["UnitFidelity"]

TEMPERATURES = (1.0, 2.0, 4.0)
WATCHED = 2.0  # the temperature of the drift watch: where the tail counts and the head still does
_WATCHED_ROWS = 256
_MOST_ROWS, _MOST_VALUES = 8192, 1 << 26


class UnitFidelity:
    """Measures the first rows of a unit (positions, of a sequence); what is there says `facts`.

    Every unit: the codec's error on its first 256 rows, for the drift watch (`kdcache.store.drift`): KL(teacher ‖
    decoded) in nats at T = 2, or ‖p̂ - p‖² of estimates at the temperature that they are for. A `whole` unit (unit 0):
    the fidelity too, on up to 8192 rows, fewer above 8192 classes; and for sparse targets the error of log Z_T for T
    from 1 to 20.
    """

    def __init__(self, field: StoredField, whole: bool = True) -> None:
        self._field, self._whole = field, whole
        classes = field.array.shape[-1]
        self._most = min(_MOST_ROWS, max(_WATCHED_ROWS, _MOST_VALUES // classes)) if whole else _WATCHED_ROWS
        self._kind = "kl"
        self._errors: dict[float, list[Tensor]] = {}
        self._log_z: list[Tensor] = []
        self._rows = 0

    def add(self, values: Tensor, encoded: dict[str, Tensor], tables: dict[str, Tensor]) -> None:
        """Logits [n, C] or [B, *shape] and the columns that they were encoded to."""
        each = max(values[:1].numel() // values.shape[-1], 1)
        left = -(-(self._most - self._rows) // each)
        if left <= 0:
            return
        values, encoded = values[:left], {suffix: column[:left] for suffix, column in encoded.items()}
        field = self._field
        array = Array(field.array.dtype, tuple(values.shape[1:]))
        decoded = CODECS[field.codec].decode(encoded, array, field.configuration, tables)
        temperatures = TEMPERATURES if self._whole else (WATCHED,)
        if isinstance(decoded, SampledLogits):
            self._kind, temperatures = "squared_error", (decoded.temperature,)
        for temperature in temperatures:
            self._errors.setdefault(temperature, []).append(row_errors(values, decoded, temperature).cpu())
        if self._whole and isinstance(decoded, SparseLogits):
            self._log_z.append(log_z_errors(values, decoded).cpu())
        self._rows += len(values) * each

    def facts(self) -> dict[str, Any]:
        """{"error": {field: {"mean", "sd", "rows"}}}, and for a whole unit {"fidelity": {field: ...}}."""
        if not self._rows:
            return {}
        errors = {temperature: torch.cat(parts) for temperature, parts in self._errors.items()}
        watched = errors[WATCHED if self._kind == "kl" else next(iter(errors))][:_WATCHED_ROWS]
        name = self._field.name
        found: dict[str, Any] = {
            "error": {
                name: {
                    "mean": float(watched.mean()),
                    "sd": float(watched.std(correction=0)),
                    "rows": len(watched),
                }
            }
        }
        if self._whole:
            fidelity: dict[str, Any] = {
                self._kind: {f"{temperature:g}": float(error.mean()) for temperature, error in errors.items()},
                "bytes_per_row": self._field.width,
                "rows": self._rows,
            }
            if self._log_z:
                fidelity |= log_z_error(torch.cat(self._log_z))
            found["fidelity"] = {name: fidelity}
        return found
