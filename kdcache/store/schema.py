"""What a store holds: fields (one named quantity each) and the fixed-width columns that carry them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kdcache.arrays import Array
from kdcache.errors import StoreDamaged
from kdcache.store.guard import check_array, check_name, keys

__all__ = ["MOST_FIELDS", "StoredField", "columns_of", "differing", "fields_from_json", "plain_field"]

MOST_FIELDS, MOST_COLUMNS = 512, 2048
_MAYBE = ("reduction", "shared")


@dataclass(frozen=True)
class StoredField:
    """One named quantity: `array` is what the codec gives back for one sample, `columns` what is on disk.

    The column of suffix "" has the field's own name, any other is `<field>.<suffix>`. `reduction`: what was done to a
    feature map before its codec; `array` is what was left. A reader has no use for it. `shared`: it is no teacher's, so
    every aligned store that has it holds the same.
    """

    name: str
    array: Array
    codec: str
    configuration: dict[str, Any]
    columns: dict[str, Array]
    reduction: dict[str, Any] | None = None
    shared: bool = False

    def column(self, suffix: str) -> str:
        """The name on disk of the column with this suffix."""
        return f"{self.name}.{suffix}" if suffix else self.name

    @property
    def width(self) -> int:
        """Bytes per row on disk, before compression."""
        return sum(array.width for array in self.columns.values())

    def to_json(self) -> dict[str, Any]:
        """What the plan says of it."""
        return {
            "name": self.name,
            "array": _array(self.array),
            "codec": {"name": self.codec, "configuration": self.configuration},
            "columns": {suffix: _array(array) for suffix, array in self.columns.items()},
            **({"reduction": self.reduction} if self.reduction else {}),
            **({"shared": True} if self.shared else {}),
        }


def plain_field(name: str, array: Array, shared: bool = False) -> StoredField:
    """A field kept as it is: one column, codec `dense` in the array's own dtype."""
    return StoredField(name, array, "dense", {"dtype": array.dtype}, {"": array}, shared=shared)


def columns_of(fields: Sequence[StoredField]) -> dict[str, Array]:
    """Every column on disk, in the order of the fields, those of one field by suffix."""
    return {f.column(suffix): array for f in fields for suffix, array in sorted(f.columns.items())}


def fields_from_json(value: Any, place: str) -> tuple[StoredField, ...]:
    """The fields that a plan names, checked; raises StoreDamaged or TrustError."""
    if not isinstance(value, list) or not 1 <= len(value) <= MOST_FIELDS:
        raise StoreDamaged(f"{place}: a store has 1 to {MOST_FIELDS} fields")
    fields = tuple(_field(item, f"{place}[{i}]") for i, item in enumerate(value))
    columns = [f.column(suffix) for f in fields for suffix in f.columns]
    for name in columns:
        check_name(name, place)
    if len(set(columns)) != len(columns) or len({f.name for f in fields}) != len(fields):
        raise StoreDamaged(f"{place}: two fields or columns have one name")
    if len(columns) > MOST_COLUMNS or "kdcache" in columns:
        raise StoreDamaged(
            f"{place}: {len(columns)} columns, at most {MOST_COLUMNS} are read; none may be named kdcache"
        )
    if "id" not in columns:
        raise StoreDamaged(f"{place}: there is no field 'id'")
    return fields


def _field(value: Any, place: str) -> StoredField:
    table = keys(value, {"name": str, "array": dict, "codec": dict, "columns": dict}, place, also=_MAYBE)
    codec = keys(table["codec"], {"name": str, "configuration": dict}, f"{place}.codec")
    if not table["columns"] or len(table["columns"]) > 16:
        raise StoreDamaged(f"{place}: a field has 1 to 16 columns")
    reduction = table.get("reduction")
    if "reduction" in table and (not isinstance(reduction, dict) or not reduction):
        raise StoreDamaged(f"{place}: 'reduction' is no table that says something")
    return StoredField(
        check_name(table["name"], place),
        check_array(table["array"], place),
        check_name(codec["name"], place),
        codec["configuration"],
        {suffix and check_name(suffix, place): check_array(array, place) for suffix, array in table["columns"].items()},
        reduction,
        _shared(table, place),
    )


def _shared(table: Mapping[str, Any], place: str) -> bool:
    """Whether every aligned store holds the same; only what is kept as it is can."""
    if "shared" not in table:
        return False
    if table["shared"] is not True or table["codec"]["name"] != "dense" or "reduction" in table:
        raise StoreDamaged(f"{place}: 'shared' is true, of a field that is kept as it is, or absent")
    return True


def _array(array: Array) -> dict[str, Any]:
    return {"dtype": array.dtype, "shape": list(array.shape)}


def differing(ours: Mapping[str, Any], theirs: Mapping[str, Any], path: str = "") -> tuple[str, Any, Any] | None:
    """The first place where two JSON tables differ, in the order of `ours`, with both values."""
    for key in [*ours, *sorted(theirs.keys() - ours.keys())]:
        a, b = ours.get(key), theirs.get(key)
        if a == b:
            continue
        if isinstance(a, dict) and isinstance(b, dict):
            return differing(a, b, f"{path}{key}.")
        return f"{path}{key}", a, b
    return None
