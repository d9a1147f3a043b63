"""Stage two: fit a network from stores. This package alone needs no torch: what does is loaded when first used."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from kdcache.student.fit import fit
from kdcache.student.folder import FitResult
from kdcache.student.metrics import read_metrics
from kdcache.student.progress import Progress

if TYPE_CHECKING:
    from kdcache.student.evaluate import evaluate_run, predict
    from kdcache.student.rows import planned_steps, rows_used

__all__ = ["FitResult", "Progress", "evaluate_run", "fit", "planned_steps", "predict", "read_metrics", "rows_used"]

_LATER = {
    "evaluate_run": "kdcache.student.evaluate",
    "planned_steps": "kdcache.student.rows",
    "predict": "kdcache.student.evaluate",
    "rows_used": "kdcache.student.rows",
}


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module 'kdcache.student' has no attribute {name!r}")
    return getattr(import_module(_LATER[name]), name)
