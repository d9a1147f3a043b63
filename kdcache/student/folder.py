"""A run's folder: one fit at a time, one identity, and `result.json` written last."""

from __future__ import annotations

import contextlib
import fcntl
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from kdcache.errors import CheckpointError
from kdcache.files import disk_errors, replace_bytes

__all__ = ["FitResult", "check_identity", "has_begun", "only_one", "read_result", "write_result"]


@dataclass(frozen=True)
class FitResult:
    """What `result.json` holds. `steps` were taken; the weights kept are those of `best_step`.

    `epochs` is passes over the training rows; `val` and `eval` are {"loss", "accuracy"?} (nats, share); `seconds` is
    the loop's wall time over all its resumptions, validation included; `samples_per_second` is rows trained on over it.
    """

    identity: dict[str, Any]
    stores: list[str]
    seed: int
    steps: int
    epochs: float
    parameters: int
    stopped_early: bool
    best_step: int
    val: dict[str, float] | None
    eval: dict[str, Any] | None
    seconds: float
    samples_per_second: float


def write_result(out: Path, result: FitResult) -> None:
    """Write `result.json` in one visible step: from then on the fit is done."""
    replace_bytes(out / "result.json", json.dumps(asdict(result), indent=1, sort_keys=True).encode() + b"\n")


def read_result(out: Path, identity: Mapping[str, Any]) -> FitResult | None:
    """The finished result, None before; CheckpointError if it is another fit's or cannot be read."""
    path = out / "result.json"
    try:
        table = json.loads(path.read_bytes())
        result = FitResult(**table)
    except (FileNotFoundError, NotADirectoryError):  # whoever writes there says what is in the way
        return None
    except (OSError, ValueError, TypeError) as error:
        raise CheckpointError(f"{path}: cannot be read ({error}); remove it and run the same command again") from error
    check_identity(path, result.identity, identity)
    return result


def has_begun(out: Path) -> bool:
    """Whether a fit has left anything in the folder that it could go on from."""
    return (out / "result.json").exists() or any((out / "resume").glob("step-*"))


def check_identity(place: Path, there: Mapping[str, Any], asked: Mapping[str, Any]) -> None:
    """CheckpointError that names the first difference, unless two identities (plain JSON) are equal."""
    difference = _difference(dict(there), dict(asked))
    if difference is not None:
        key, ours, theirs = difference
        raise CheckpointError(
            f"{place}: belongs to another fit: its {key} is {_short(ours)}, this one's is "
            f"{_short(theirs)}; choose another output folder, or go back to what it was begun with"
        )


def _difference(there: dict[str, Any], asked: dict[str, Any], path: str = "") -> tuple[str, Any, Any] | None:
    for key in sorted(there.keys() | asked.keys()):
        a, b = there.get(key), asked.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            if inner := _difference(a, b, f"{path}{key}."):
                return inner
        elif a != b:
            return f"{path}{key}", a, b
    return None


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 200 else text[:197] + "..."


@contextlib.contextmanager
def only_one(out: Path, here: bool) -> Iterator[None]:
    """Hold the folder's lock while the block runs, in the process where `here` is true.

    The kernel lets go of it when its holder dies, however that happens, so a killed run never blocks the next.
    """
    if (out / "plan.json").exists():
        raise CheckpointError(f"{out}: holds a store, not a fit; choose a folder of its own for --out")
    if not here:
        yield
        return
    with disk_errors(out):
        out.mkdir(parents=True, exist_ok=True)
        file = (out / ".lock").open("a")
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise CheckpointError(
                f"{out}: another process is fitting into this folder; wait for it, or choose another"
            ) from error
        yield
