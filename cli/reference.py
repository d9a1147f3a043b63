"""Every key that a recipe may have, read off the checked tables themselves, so that it cannot be out of date."""

from __future__ import annotations

import types
from collections.abc import Iterator
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from kdcache.config import Recipe

__all__ = ["key_reference"]


def key_reference() -> Iterator[str]:
    """Lines: each table once, under every name that it may have, then its keys with type, default and meaning."""
    places: dict[type[BaseModel], list[str]] = {}
    waiting: list[tuple[str, type[BaseModel]]] = [("", Recipe)]
    while waiting:
        name, table = waiting.pop(0)
        if table in places:
            places[table].append(name)
            continue
        places[table] = [name]
        waiting += [
            (f"{name}.{key}".lstrip(".") + _many(field.annotation), inner)
            for key, field in table.model_fields.items()
            if (inner := _table_in(field.annotation)) is not None
        ]
    for table, names in places.items():
        header = ", ".join(f"[[{name[:-2]}]]" if name.endswith("[]") else f"[{name}]" for name in names)
        yield f"{header}  {(table.__doc__ or '').strip().splitlines()[0]}" if names[0] else "at the top"
        for key, field in table.model_fields.items():
            if _table_in(field.annotation) is None:
                yield f"  {key:<18} {_kind(field.annotation):<34} {_default(field)}{_meaning(field)}".rstrip()
        yield ""


def _kind(annotation: Any) -> str:
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return " | ".join(_toml(value) for value in parts)
    if origin in (Union, types.UnionType):
        return " | ".join(_kind(part) for part in parts if part is not type(None))
    if origin in (list, tuple):
        return f"list of {_kind(parts[0])}"
    if origin is dict:
        return "table"
    if origin is not None:  # Annotated
        return _kind(parts[0])
    return {"str": "text", "bool": "true | false", "int": "whole number", "float": "number", "Path": "path"}.get(
        getattr(annotation, "__name__", ""), "any"
    )


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required  "
    value = field.get_default(call_default_factory=True)
    return "" if value is None or value in ((), {}, []) else f"default {_toml(value)}  "


def _toml(value: Any) -> str:
    if isinstance(value, tuple):
        return f"[{', '.join(map(_toml, value))}]"
    return str(value).lower() if isinstance(value, bool) else repr(value).replace("'", '"')


def _meaning(field: FieldInfo) -> str:
    return f"({field.description})" if field.description else ""


def _many(annotation: Any) -> str:
    if get_origin(annotation) is dict:
        return ".NAME"
    return "[]" if any(get_origin(part) is tuple for part in (annotation, *get_args(annotation))) else ""


def _table_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for part in get_args(annotation) if (found := _table_in(part))), None)
