"""Every key of a suite file: its type and range, its default, and what it means; read off the schema."""

from __future__ import annotations

import types
import typing
from collections.abc import Iterator, Mapping
from typing import Any, get_args

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from kdbench.discovery.settings import REQUIRED, within
from kdbench.recipe import Part, Recipe
from kdbench.suite import schema

TABLES: Mapping[str, type[BaseModel]] = {
    "suite": schema.Suite,
    "data": schema.Data,
    "recipe": Recipe,
    "pairs": schema.Pair,
    "teachers": schema.TeacherTable,
    "methods": schema.MethodTable,
    "engine": schema.Engine,
    "tune": schema.Tune,
    "tuning": schema.Tuning,
}
NOT_IN_SCHEMA: Mapping[str, Mapping[str, dict[str, Any]]] = {
    "suite": {
        "extends": {
            "default": None,
            "type": "string",
            "description": "A suite's name or file that this one changes: tables are merged, lists are replaced.",
        },
        "add_methods": {
            "default": [],
            "type": "list of tables",
            "description": "Methods that are added to those of the extended suite, as ``[[add_methods]]``.",
        },
    }
}
"""Keys that are gone once a file has been read."""


def names() -> list[str]:
    """Everything that :func:`rows` describes."""
    return list(TABLES)


def rows(name: str) -> list[dict[str, Any]]:
    """What is called ``name``, as ``kdbench describe --json`` prints it; empty where nothing is."""
    found: list[dict[str, Any]] = []
    if name in TABLES:
        keys = {**NOT_IN_SCHEMA.get(name, {}), **_keys(TABLES[name])}
        found.append(_row("table of a suite", name, _summary(TABLES[name]), keys))
    return found


def _row(kind: str, name: str, summary: str, keys: Mapping[str, Any]) -> dict[str, Any]:
    return {"kind": kind, "name": name, "summary": summary, "keys": dict(keys)}


def _summary(model: type[BaseModel]) -> str:
    return " ".join((model.__doc__ or "").split()).replace("``", "`")


def _keys(model: type[BaseModel]) -> dict[str, dict[str, Any]]:
    hints = typing.get_type_hints(model, include_extras=True)
    return {
        key: {
            "default": REQUIRED if info.is_required() else _plain(info.default),
            "type": in_words(hints[key]),
            "description": " ".join((info.description or "").split()),
        }
        for key, info in model.model_fields.items()
    }


def _plain(default: Any) -> Any:
    if isinstance(default, Part):
        return default.name
    return default.model_dump(exclude_unset=True) if isinstance(default, BaseModel) else default


def in_words(annotation: Any) -> str:
    """A type of the schema in TOML's words, with its range: ``int > 0``, ``list of strings``."""
    origin, inner = typing.get_origin(annotation), get_args(annotation)
    if annotation is Part:
        return "name or table"
    if origin is typing.Annotated:
        bounds = {type(bound).__name__: str(_limit(bound)) for bound in _bounds(inner[1:])}
        return within(in_words(inner[0]), bounds)
    if origin is typing.Literal:
        return " | ".join(f'"{value}"' for value in inner)
    if origin in (typing.Union, types.UnionType):
        return " | ".join(in_words(part) for part in inner if part is not types.NoneType)
    if origin is tuple:
        if inner[-1] is Ellipsis:
            return f"list of {in_words(inner[0])}"
        return f"[{', '.join(map(in_words, inner))}]"
    if isinstance(annotation, type) and origin is None and issubclass(annotation, BaseModel):
        return "table"
    return {str: "string", bool: "true | false", int: "int", float: "float"}.get(annotation, "table")


def _bounds(extras: tuple[Any, ...]) -> Iterator[Any]:
    for extra in extras:
        for bound in extra.metadata if isinstance(extra, FieldInfo) else (extra,):
            if type(bound).__name__ in {"Gt", "Ge", "Lt", "Le"}:
                yield bound


def _limit(bound: Any) -> str:
    value = getattr(bound, type(bound).__name__.lower())
    return "2^63" if value == 2**63 else str(value)
