"""Codecs tried on a pilot of the teacher's logits: bytes a row against what they keep, on rows they were not fitted on.

What is tried, unless the recipe names the codec or some of its keys: `dense` in float16 and float32, `quant` with 4 and
8 bits, `lowrank` and `topk` at a ladder of sizes. `sampled` and `threshold` estimate one temperature at random and are
tried only where they are asked for by name.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from kdcache.arrays import Array
from kdcache.codecs import CODECS, SampledLogits
from kdcache.codecs.fidelity import fidelity, gradients, stand_in
from kdcache.errors import UsageError

__all__ = ["Sample", "Trial", "attempt", "candidates", "pareto", "refine", "sample_of", "try_codecs"]

BYTES = (8, 12, 16, 20, 24, 32, 40, 48, 64, 80, 96, 128, 160, 192, 256, 384, 512)
KEPT = (2, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256)
DRAWS = (12, 25, 50, 100, 200)
_MANY = 512  # above so many classes a fit takes seconds: every second size
_WIDE = 4096  # above so many classes a basis of all of them takes minutes to fit: only where lowrank is asked for
_HELD_VALUES = 1 << 23
_SIZES = ("bytes", "k", "draws")  # the key that a codec's size goes by


@dataclass(frozen=True)
class Trial:
    """One configuration measured. `error` by temperature: KL(teacher ‖ decoded) in nats, or ‖p̂ - p‖² of an estimate.

    `asked` is what was asked of the codec, `configuration` what it made of that. `cosine` and `norm_ratio` compare the
    student's gradient with the one under the teacher's own logits. Bytes are of a row, of sequences of a position.
    """

    codec: str
    asked: dict[str, Any]
    configuration: dict[str, Any]
    bytes: int
    kind: str
    error: dict[str, float]
    cosine: dict[str, float]
    norm_ratio: dict[str, float]

    @property
    def worst(self) -> float:
        """The largest error over the temperatures."""
        return max(self.error.values())

    @property
    def name(self) -> str:
        """The codec and what was asked of it, as people read it."""
        return " ".join([self.codec, *(f"{key} {value}" for key, value in self.asked.items())])

    def to_json(self) -> dict[str, Any]:
        """As facts."""
        return {**dataclasses.asdict(self), "name": self.name}


@dataclass(frozen=True)
class Sample:
    """A pilot cut in two: float32 [n, C] to fit on, [m, C] to judge on, with their keys and a student's logits."""

    fitted: Tensor
    held_out: Tensor
    keys: Tensor
    student: Tensor


def sample_of(logits: Tensor, keys: Tensor) -> Sample:
    """Three quarters to fit on, the last quarter to judge on (of many classes fewer, so that it stays quick).

    The student is a stand-in that needs no training, see `kdcache.codecs.fidelity.stand_in`. UsageError below 8 rows.
    """
    count, classes = logits.shape
    if count < 8:
        raise UsageError(f"the pilot has {count} rows, and 8 are needed to fit and judge a codec; take a larger source")
    cut = count - max(2, min(count // 4, max(256, _HELD_VALUES // classes)))
    held_out = logits[cut:]
    return Sample(logits[:cut], held_out, keys[cut:], stand_in(held_out, keys[cut:]))


def candidates(
    classes: int, codec: str | None, fixed: Mapping[str, Any], max_bytes: int | None
) -> list[tuple[str, dict[str, Any]]]:
    """(codec, keys) in a fixed order, with those of no codec at all left out.

    `fixed` are keys that the recipe gives; a codec that does not take them falls out. With `max_bytes` there is
    `lowrank` of just that size too.
    """
    ladder = BYTES if classes <= _MANY else BYTES[::2]
    sizes = sorted({*ladder, *([max_bytes] if max_bytes else [])})
    found: list[tuple[str, dict[str, Any]]] = [("dense", {"dtype": name}) for name in ("float16", "float32")]
    found += [("quant", {"bits": bits}) for bits in (4, 8)]
    found += [("lowrank", {"bytes": size}) for size in sizes if classes <= _WIDE or codec == "lowrank"]
    for more in ({}, {"dtype": "uint8"}):
        found += [("topk", {"k": kept, **more}) for kept in KEPT if kept < classes]
    if codec == "sampled":
        found += [("sampled", {"draws": draws}) for draws in DRAWS]
    if codec == "threshold":
        found += [("threshold", {"k": kept}) for kept in KEPT]
    unique = {}
    for name, keys in found:
        if name in CODECS and codec in (None, name):
            merged = {**keys, **fixed}
            unique[name, repr(sorted(merged.items()))] = (name, merged)
    array = Array("float32", (classes,))
    return [(name, keys) for name, keys in unique.values() if _takes(name, keys, array)]


def _takes(codec: str, keys: Mapping[str, Any], array: Array) -> bool:
    try:
        CODECS[codec].configure(keys, array)
    except UsageError:
        return False
    return True


def attempt(codec: str, keys: dict[str, Any], sample: Sample, temperatures: Sequence[float]) -> Trial:
    """Fit on one part, measure on the other. Raises UsageError where the codec cannot do this."""
    array = Array("float32", (sample.held_out.shape[1],))
    module = CODECS[codec]
    configuration = module.configure(keys, array)
    fitted = module.fit(sample.fitted, configuration) if module.NEEDS_PILOT else {}
    tables = {name: torch.from_numpy(values) for name, values in fitted.items()}
    encoded = module.encode(sample.held_out, configuration, tables, sample.keys)
    decoded = module.decode(encoded, array, configuration, tables)
    kind, error = next(iter(fidelity(sample.held_out, decoded, temperatures).items()))
    served = [decoded.temperature] if isinstance(decoded, SampledLogits) else temperatures
    compared = {f"{t:g}": gradients(sample.held_out, sample.student, decoded, t) for t in served}
    return Trial(
        codec,
        keys,
        configuration,
        sum(column.width for column in module.columns(array, configuration).values()),
        kind,
        {t: max(value, 0.0) for t, value in _short(error).items()},  # rounding below zero is zero
        _short({t: found["cosine"] for t, found in compared.items()}),
        _short({t: found["norm_ratio"] for t, found in compared.items()}),
    )


def try_codecs(
    found: Sequence[tuple[str, dict[str, Any]]],
    sample: Sample,
    temperatures: Sequence[float],
    progress: Callable[[int, int], None] | None = None,
) -> list[Trial]:
    """A trial of each, in order; what a codec cannot do on this pilot is left out. UsageError if nothing remains."""
    trials, refusal = [], None
    for number, (codec, keys) in enumerate(found):
        try:
            trials.append(attempt(codec, keys, sample, temperatures))
        except UsageError as error:
            refusal = error
        if progress:
            progress(number + 1, len(found))
    if not trials:
        raise UsageError(f"no codec can be tried on this teacher's logits: {refusal or 'none takes these keys'}")
    return trials


def refine(
    trials: Sequence[Trial], meets: Callable[[Trial], bool], run: Callable[[str, dict[str, Any]], Trial]
) -> list[Trial]:
    """More trials, between the smallest of a family that meets a bound and the next smaller one, by halving.

    A family is a codec with all keys alike but its size; one that cannot come below the smallest of all is left.
    """
    more: list[Trial] = []
    least = min((trial.bytes for trial in trials if meets(trial)), default=0)
    for family in _families(trials):
        (key,) = (key for key in _SIZES if key in family[0].asked)
        passing = [trial for trial in family if meets(trial)]
        if not passing:
            continue
        best = min(passing, key=lambda trial: trial.asked[key])
        below = [trial for trial in family if trial.asked[key] < best.asked[key]]
        if below and max(trial.bytes for trial in below) >= least:
            continue
        low, high = max([trial.asked[key] for trial in below], default=0), best.asked[key]
        while high - low > 1:
            middle = (low + high) // 2
            try:
                trial = run(best.codec, {**best.asked, key: middle})
            except UsageError:
                low = middle
                continue
            more.append(trial)
            low, high = (low, middle) if meets(trial) else (middle, high)
    return more


def _families(trials: Sequence[Trial]) -> Iterator[list[Trial]]:
    found: dict[str, list[Trial]] = {}
    for trial in trials:
        if any(key in trial.asked for key in _SIZES):
            rest = sorted((key, value) for key, value in trial.asked.items() if key not in _SIZES)
            found.setdefault(f"{trial.codec} {rest}", []).append(trial)
    yield from found.values()


def pareto(trials: Sequence[Trial]) -> list[Trial]:
    """Those that no other beats: as small and as near to the teacher, and better in one of them. Ascending bytes."""
    front: list[Trial] = []
    for trial in sorted(trials, key=lambda t: (t.bytes, t.worst, t.name)):
        if all(trial.worst < other.worst for other in front if other.kind == trial.kind):
            front.append(trial)
    return front


def _short(values: Mapping[str, float]) -> dict[str, float]:
    """To six digits: what is kept must not hang on the last bits of a machine's sums."""
    return {name: float(f"{value:.6g}") for name, value in values.items()}
