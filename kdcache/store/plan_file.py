"""plan.json read and checked: what a plan from a stranger may say, before anything of it is used."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from kdcache.errors import StoreDamaged, StoreMismatch, TrustError
from kdcache.files import disk_errors
from kdcache.store.guard import HEX64, MAX_ROWS, check_int, keys, parse_canonical, read_canonical, safe
from kdcache.store.plan import COMPRESSIONS, PLAN, VERSION, Plan
from kdcache.store.schema import StoredField, fields_from_json

__all__ = ["plan_from_bytes", "plan_from_json", "read_plan"]

_LIMIT = 8 << 20
_MAX_BLOCKS = 1 << 22
_MOST_VIEWS = 99
_OF_A_VIEW = re.compile(r"view\d\d\..+")
_MAX_BLOCK_BYTES = 1 << 30  # of one column; it must fit one Parquet page and one HDF5 chunk

_SOURCE: dict[str, type | tuple[type, ...]] = {
    "name": str,
    "fingerprint": str,
    "classes": (int, type(None)),
    "class_names": list,
}
_ORDER: dict[str, type | tuple[type, ...]] = {"kind": str, "seed": int}
_TOKENIZER: dict[str, type | tuple[type, ...]] = {
    "vocabulary": (str, type(None)),
    "size": int,
    "special_tokens": dict,
    "chat_template": (str, type(None)),
}
_CONTAINER: dict[str, type | tuple[type, ...]] = {"format": str, "compression": str}


def read_plan(store: Path) -> Plan | None:
    """The plan in a store's folder, checked; None where there is none."""
    path = store / PLAN
    with disk_errors(path, "read"):
        try:
            value = read_canonical(path, _LIMIT)
        except FileNotFoundError:
            return None
    return plan_from_json(value, str(path))


def plan_from_json(value: Any, place: str) -> Plan:
    """A plan from the content of plan.json; raises StoreDamaged, StoreMismatch (newer version) or TrustError."""
    if isinstance(value, dict) and value.get("format") == "kdcache" and value.get("version") != VERSION:
        raise StoreMismatch(
            f"{place}: store format version {safe(value.get('version'))}, this kdcache reads {VERSION}; "
            "install the kdcache that wrote it, or a newer one"
        )
    table = keys(
        value,
        {
            "format": str,
            "version": int,
            "rows": int,
            "source": dict,
            "order": dict,
            "unit_rows": int,
            "block_rows": int,
            "batch_rows": int,
            "container": dict,
            "fields": list,
            "input_statistics": (dict, type(None)),
            "teacher": (dict, type(None)),
            "tables": dict,
        },
        place,
        also=("budget", "views"),
    )
    source = keys(table["source"], _SOURCE, f"{place}: source", also=("tokenizer",))
    order = keys(table["order"], _ORDER, f"{place}: order")
    container = keys(table["container"], _CONTAINER, f"{place}: container")
    rows = check_int(table["rows"], 1, MAX_ROWS, f"{place}: rows")
    block_rows = check_int(table["block_rows"], 1, 2**31, f"{place}: block_rows")
    unit_rows = check_int(table["unit_rows"], block_rows, 2**31, f"{place}: unit_rows")
    check_int(order["seed"], -(2**63), 2**63 - 1, f"{place}: seed")
    if source["classes"] is not None:
        check_int(source["classes"], 1, 2**31, f"{place}: classes")
    for digest in (source["fingerprint"], *table["tables"].values()):
        if not isinstance(digest, str) or not HEX64.fullmatch(digest):
            raise StoreDamaged(f"{place}: {safe(digest)!r} is not a SHA-256")
    if table["format"] != "kdcache" or unit_rows % block_rows or order["kind"] not in ("shuffled", "source"):
        raise StoreDamaged(f"{place}: format, unit_rows or order hold what no kdcache writes")
    if container["compression"] not in COMPRESSIONS.get(container["format"], ()):
        raise StoreDamaged(
            f"{place}: container {safe(container['format'])!r} with compression {safe(container['compression'])!r} "
            f"is none of {COMPRESSIONS}"
        )
    if "tokenizer" in source:
        _check_tokenizer(source["tokenizer"], f"{place}: source.tokenizer")
    if not all(isinstance(name, str) for name in source["class_names"]):
        raise StoreDamaged(f"{place}: class_names are not strings")
    fields = fields_from_json(table["fields"], f"{place}: fields")
    if strange := table["tables"].keys() - {f.name for f in fields}:
        raise StoreDamaged(f"{place}: there are tables of {safe(sorted(strange)[0])!r}, which is not a field")
    plan = Plan(
        rows,
        source,
        order,
        unit_rows,
        block_rows,
        check_int(table["batch_rows"], 1, unit_rows, f"{place}: batch_rows"),
        container,
        fields,
        _statistics(table["input_statistics"], place),
        table["teacher"],
        table["tables"],
        _budget(table.get("budget", {}), fields, place),
        _views(table["views"], fields, place) if "views" in table else None,
    )
    _check_bounds(plan, place)
    return plan


def _check_tokenizer(value: Any, place: str) -> None:
    table = keys(value, _TOKENIZER, place)
    check_int(table["size"], 1, 2**31, place)
    for digest in (table["vocabulary"], table["chat_template"]):
        if digest is not None and not HEX64.fullmatch(digest):
            raise StoreDamaged(f"{place}: {safe(digest)!r} is not a SHA-256")
    for number in table["special_tokens"].values():
        check_int(number, 0, table["size"] - 1, f"{place}.special_tokens")


def _check_bounds(plan: Plan, place: str) -> None:
    """What a reader must allocate for this plan is bounded."""
    blocks = plan.units * -(-min(plan.rows, plan.unit_rows) // plan.block_rows)
    if blocks > _MAX_BLOCKS:
        raise TrustError(f"{place}: {plan.rows} rows are cut into {blocks} blocks, at most {_MAX_BLOCKS} are read")
    largest = min(plan.rows, plan.block_rows) * max(array.width for array in plan.columns.values())
    if largest > _MAX_BLOCK_BYTES:
        raise TrustError(f"{place}: a block of one column takes {largest} bytes, at most {_MAX_BLOCK_BYTES} are read")


def plan_from_bytes(data: bytes, place: str) -> Plan:
    """A plan from the bytes of plan.json."""
    return plan_from_json(parse_canonical(data, place), place)


def _statistics(value: Any, place: str) -> dict[str, list[float]] | None:
    if value is None:
        return None
    table = keys(value, {"mean": list, "std": list}, f"{place}: input_statistics")
    numbers = [*table["mean"], *table["std"]]
    if (
        not 1 <= len(table["mean"]) == len(table["std"])
        or not all(isinstance(x, float) for x in numbers)
        or min(table["std"]) <= 0
    ):
        raise StoreDamaged(f"{place}: input_statistics are not one mean and one positive std a channel")
    return table


def _views(value: Any, fields: tuple[StoredField, ...], place: str) -> dict[str, Any]:
    """How many there are, and that each has fields of its own; what they are is for `kdcache.views` to check."""
    if not isinstance(value, dict):
        raise StoreDamaged(f"{place}: views: expected a table, found {type(value).__name__}")
    count = check_int(value.get("count"), 1, _MOST_VIEWS, f"{place}: views.count")
    found = {f.name.partition(".")[0] for f in fields if "." in f.name}
    for view in range(1, count + 1):
        if f"view{view:02d}" not in found:
            raise StoreDamaged(f"{place}: there are {count} views, and view {view} has no field")
    return value


def _budget(value: Any, fields: tuple[StoredField, ...], place: str) -> dict[str, Any]:
    known = {f.name for f in fields}
    known |= {name.partition(".")[2] for name in known if _OF_A_VIEW.fullmatch(name)}  # one choice for all views
    for name, choice in keys(value, {}, f"{place}: budget", tuple(known)).items():
        keys(choice, {"asked": dict, "why": str, "measured": dict}, f"{place}: budget of {name}")
    return dict(value)
