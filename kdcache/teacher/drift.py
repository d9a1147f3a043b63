"""The drift watch at work: a unit on which the codec loses far more than on unit 0 ends the dump."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kdcache.errors import DataError
from kdcache.store import StoreWriter
from kdcache.store.drift import REFUSED, drifted
from kdcache.store.manifest import read_record

__all__ = ["check_drift"]


def check_drift(writer: StoreWriter, unit: int | None = None, facts: Mapping[str, Any] | None = None) -> None:
    """Raise DataError if a unit is beyond what `kdcache.store.drift` lets through: this one, before it is committed.

    Without `unit`, all that are committed: for those that were written before unit 0 was there to compare with.
    """
    first = read_record(writer.path, 0)
    if first is None or unit == 0:
        return
    if unit is not None:
        _check(writer, unit, first.facts, facts or {})
        return
    for other in range(1, writer.plan.units):
        if (record := read_record(writer.path, other)) is not None:
            _check(writer, other, first.facts, record.facts)


def _check(writer: StoreWriter, unit: int, first: Mapping[str, Any], found: Mapping[str, Any]) -> None:
    plan = writer.plan
    for name, error in found.get("error", {}).items():
        known = first.get("error", {}).get(name)
        if known is None or not drifted(known, error, REFUSED):
            continue
        codec = next(f.codec for f in plan.fields if f.name == name)
        in_order = plan.order["kind"] != "shuffled"
        cure = 'give [store] order = "shuffled", so that unit 0 is like all others; ' if in_order else ""
        raise DataError(
            f"{writer.path}: unit {unit}: the {codec} codec's error on {name} is {error['mean']:.3g} and was "
            f"{known['mean']:.3g} on unit 0; at most {REFUSED:g} times is let through (KL in nats at T = 2, or squared "
            f"error of estimates, on {error['rows']} rows); {cure}"
            "take another codec or more bytes in [fields], with another --out; committed units are kept"
        )
