"""Checkpoints: a folder of safetensors and one JSON, published whole, verified before use, never a pickle.

resume/step-00001234/
  model.safetensors  optimizer.safetensors  [adapters, best, log].safetensors
  state.json         step, identity, facts of the loop, the SHA-256 of every other file and of itself
"""

from __future__ import annotations

import json
import re
import secrets
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdcache.errors import CheckpointError, KdcacheError
from kdcache.files import disk_errors, read_bytes, replace, replace_folder, write_temporary
from kdcache.fingerprint import canonical, digest_of, sha256
from kdcache.student.folder import check_identity

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Checkpoint", "newest_checkpoint", "write_checkpoint"]

FORMAT = 1
KEPT = 2
_NAME = re.compile(r"step-(\d{8,})")
_LARGEST = 1 << 40


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """All that a fit needs to go on after `step` steps: tensors by file and name, and JSON facts."""

    step: int
    tensors: dict[str, dict[str, Tensor]]
    facts: dict[str, Any]


def write_checkpoint(out: Path, identity: Mapping[str, Any], checkpoint: Checkpoint) -> None:
    """Publish a checkpoint and remove all but the newest two."""
    from safetensors.torch import save

    folder = out / "resume"
    final = folder / f"step-{checkpoint.step:08d}"
    temporary = folder / f"tmp-{secrets.token_hex(8)}"
    with disk_errors(final):
        try:
            temporary.mkdir(parents=True)
            digests = {}
            for name, tensors in sorted(checkpoint.tensors.items()):
                data = save({key: _plain(tensor) for key, tensor in tensors.items()})
                digests[name] = sha256([data])
                replace(write_temporary(temporary, data), temporary / f"{name}.safetensors")
            state = {
                "format": FORMAT,
                "step": checkpoint.step,
                "identity": dict(identity),
                "files": digests,
                "facts": checkpoint.facts,
            }
            state["sha256"] = digest_of(state)
            replace(write_temporary(temporary, canonical(state)), temporary / "state.json")
            if final.exists():  # a damaged one that was passed over
                shutil.rmtree(final)
            replace_folder(temporary, final)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
    for old in _found(folder)[KEPT:]:
        shutil.rmtree(old, ignore_errors=True)


def newest_checkpoint(out: Path, identity: Mapping[str, Any], say: Callable[[str], None]) -> Checkpoint | None:
    """The newest checkpoint whose bytes are whole, None if there is none; `say` gets a line for each passed over.

    CheckpointError if it belongs to another fit, or if there are checkpoints and every one is damaged.
    """
    found = _found(out / "resume")
    for folder in found:
        try:
            state, tensors = _read(folder)
        except (OSError, ValueError, KeyError, TypeError, KdcacheError) as error:
            say(f"{folder}: passed over, it is damaged ({error})")
            continue
        check_identity(folder, state["identity"], identity)
        return Checkpoint(state["step"], tensors, state["facts"])
    if found:
        raise CheckpointError(
            f"{out / 'resume'}: all {len(found)} checkpoints are damaged; remove that folder to start over"
        )
    return None


def _found(folder: Path) -> list[Path]:
    """The published checkpoints, newest first."""
    if not folder.is_dir():
        return []
    steps = {int(match[1]): path for path in folder.iterdir() if (match := _NAME.fullmatch(path.name))}
    return [steps[step] for step in sorted(steps, reverse=True)]


def _read(folder: Path) -> tuple[dict[str, Any], dict[str, dict[str, Tensor]]]:
    from safetensors.torch import load

    state = json.loads(read_bytes(folder / "state.json", 1 << 28))
    expected = state.pop("sha256")
    if digest_of(state) != expected:
        raise ValueError(f"state.json has the SHA-256 {digest_of(state)[:12]}, it says {expected[:12]}")
    if state["format"] != FORMAT:
        raise ValueError(f"it is of format {state['format']}, this version reads {FORMAT}")
    tensors = {}
    for name, digest in state["files"].items():
        data = read_bytes(folder / f"{name}.safetensors", _LARGEST)
        if sha256([data]) != digest:
            raise ValueError(f"{name}.safetensors has the SHA-256 {sha256([data])[:12]}, state.json says {digest[:12]}")
        tensors[name] = load(data)
    return state, tensors


def _plain(tensor: Tensor) -> Tensor:
    """A contiguous copy on the CPU: safetensors refuses tensors that share memory, as tied weights do."""
    return tensor.detach().cpu().clone().contiguous()
