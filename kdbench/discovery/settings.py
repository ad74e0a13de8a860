"""Settings: the keyword-only constructor arguments of what plugins offer.

They are read in two ways. *Statically*, from the source's syntax tree, so that listing methods imports no
torch; and by *import*, when a suite's values are checked against the annotations.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import inspect
import json
import re
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import PydanticSchemaGenerationError, TypeAdapter, ValidationError

from kdbench.errors import PluginError, did_you_mean
from kdbench.words import shown

REQUIRED = "(required)"

# What the annotations of kdbench.method say, in words.
_RANGES: Mapping[str, str] = {
    "Positive": "float > 0",
    "NonNegative": "float >= 0",
    "Fraction": "float in 0..1",
    "PositiveInt": "int > 0",
    "NonNegativeInt": "int >= 0",
}


_SIGNS = {"Gt": ">", "Ge": ">=", "Lt": "<", "Le": "<="}


@dataclass(frozen=True)
class Setting:
    """One setting: its default, and its type with range in words."""

    default: Any
    type: str

    def to_json(self) -> dict[str, Any]:
        """For ``--json``."""
        return {"default": self.default, "type": self.type}


@dataclass(frozen=True)
class Declared:
    """What is known of a target without importing it."""

    settings: Mapping[str, Setting] = field(default_factory=dict)
    summary: str = ""
    attributes: Mapping[str, Any] = field(default_factory=dict)
    """Literal class attributes such as ``paper`` and ``reads``."""


def load_target(target: str) -> Any:
    """Import ``package.module:Name``."""
    module, _, name = target.partition(":")
    loaded = importlib.import_module(module)
    if not hasattr(loaded, name):
        raise PluginError(f"{target}: module '{module}' has no '{name}'")
    return getattr(loaded, name)


def source_of(target: str) -> Path | None:
    """The source file of ``package.module:Name``, found without importing the module itself."""
    module = target.partition(":")[0]
    try:
        spec = importlib.util.find_spec(module)
    except (ImportError, ValueError):
        return None
    return Path(spec.origin) if spec and spec.origin and spec.origin.endswith(".py") else None


def read_statically(target: str) -> Declared | None:
    """What a class or function declares, from its source; None if the source does not show it."""
    path = source_of(target)
    if path is None:
        return None
    name = target.partition(":")[2]
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"))
    except (SyntaxError, UnicodeDecodeError):
        return None  # the import will say what is wrong
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and node.name == name:
            return Declared(_arguments(node), _first_line(ast.get_docstring(node)))
        if isinstance(node, ast.ClassDef) and node.name == name:
            return _of_class(node)
    return None


def _of_class(node: ast.ClassDef) -> Declared | None:
    attributes: dict[str, Any] = {}
    constructor = None
    for item in node.body:
        if isinstance(item, ast.FunctionDef) and item.name == "__init__":
            constructor = item
        for name, value in _assignments(item):
            try:
                attributes[name] = _literal(value)
            except ValueError:
                continue  # not a literal: only an import can tell
    if _settings_decide_reads(node):
        attributes["reads"] = None
    if any(ast.unparse(base).rpartition(".")[2] not in {"Method", "object"} for base in node.bases):
        return None  # settings and attributes may be inherited
    settings = _arguments(constructor) if constructor else {}
    return Declared(settings, _first_line(ast.get_docstring(node)), attributes)


def _settings_decide_reads(node: ast.ClassDef) -> bool:
    """Whether ``reads`` is a property, or assigned to an instance."""
    return any(
        (isinstance(part, ast.FunctionDef) and part.name == "reads")
        or (isinstance(part, ast.Attribute) and isinstance(part.ctx, ast.Store) and ast.unparse(part) == "self.reads")
        for part in ast.walk(node)
    )


def _assignments(item: ast.stmt) -> Iterator[tuple[str, ast.expr]]:
    if isinstance(item, ast.Assign):
        for place in item.targets:
            if isinstance(place, ast.Name):
                yield place.id, item.value
    elif isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name) and item.value:
        yield item.target.id, item.value


def _literal(node: ast.expr) -> Any:
    if isinstance(node, ast.Call) and ast.unparse(node.func) == "frozenset":
        return frozenset(ast.literal_eval(node.args[0])) if node.args else frozenset()
    return ast.literal_eval(node)


def _arguments(node: ast.FunctionDef) -> dict[str, Setting]:
    settings = {}
    for argument, default in zip(node.args.kwonlyargs, node.args.kw_defaults, strict=True):
        annotation = _in_words(argument.annotation) if argument.annotation else "any"
        try:
            value = REQUIRED if default is None else _literal(default)
        except ValueError:
            value = ast.unparse(typing.cast(ast.expr, default))
        settings[argument.arg] = Setting(value, annotation)
    return settings


def _in_words(annotation: ast.expr) -> str:
    """An annotation as it is written in the source."""
    if isinstance(annotation, ast.BinOp):
        return f"{_in_words(annotation.left)} | {_in_words(annotation.right)}"
    if isinstance(annotation, ast.Subscript):
        inner = annotation.slice.elts if isinstance(annotation.slice, ast.Tuple) else [annotation.slice]
        outer = ast.unparse(annotation.value).rpartition(".")[2]
        if outer == "Literal":
            return " | ".join(map(ast.unparse, inner))
        if outer == "Optional":
            return f"{_in_words(inner[0])} | None"
        if outer == "Annotated":
            bounds = {
                ast.unparse(call.func).rpartition(".")[2]: ast.unparse(call.args[0])
                for call in inner[1:]
                if isinstance(call, ast.Call) and call.args
            }
            return within(_in_words(inner[0]), bounds)
    if isinstance(annotation, ast.Constant) and isinstance(annotation.value, str):
        return _in_words(ast.parse(annotation.value, mode="eval").body)
    text = ast.unparse(annotation)
    return _RANGES.get(text.rpartition(".")[2], text)


def _object_in_words(annotation: Any) -> str:
    """The same of an annotation that Python has already evaluated."""
    origin, inner = typing.get_origin(annotation), typing.get_args(annotation)
    if isinstance(annotation, str):
        return _in_words(ast.parse(annotation, mode="eval").body)
    if annotation in (None, types.NoneType):
        return "None"
    if origin is typing.Literal:
        return " | ".join(map(repr, inner))
    if origin in (typing.Union, types.UnionType):
        return " | ".join(map(_object_in_words, inner))
    if origin is typing.Annotated:
        bounds = {
            name: str(getattr(bound, name.lower()))
            for bound in inner[1:]
            for name in _SIGNS
            if getattr(bound, name.lower(), None) is not None
        }
        return within(_object_in_words(inner[0]), bounds)
    if isinstance(annotation, type) and origin is None:
        return annotation.__name__
    return str(annotation).replace("typing.", "")


def within(kind: str, bounds: Mapping[str, str]) -> str:
    """A type with its range: ``float in 0..1``, ``int > 0``. ``bounds``: ``Gt``, ``Ge``, ``Lt``, ``Le``."""
    if "Ge" in bounds and "Le" in bounds:
        return f"{kind} in {bounds['Ge']}..{bounds['Le']}"
    limits = " and ".join(f"{sign} {bounds[name]}" for name, sign in _SIGNS.items() if name in bounds)
    return f"{kind} {limits}".rstrip()


def _first_line(docstring: str | None) -> str:
    return docstring.strip().splitlines()[0].replace("``", "`") if docstring else ""


def read_by_import(thing: Callable[..., Any]) -> Declared:
    """What an imported class or function declares."""
    settings = {}
    for name, parameter in _parameters(thing).items():
        annotation = parameter.annotation
        words = "any" if annotation is parameter.empty else _object_in_words(annotation)
        default = REQUIRED if parameter.default is parameter.empty else parameter.default
        settings[name] = Setting(default, words)
    attributes = {
        key: getattr(thing, key)
        for key in ("paper", "reads", "student_reads", "teacher_reads", "needs_teacher", "expected_failures")
        if hasattr(thing, key)
    }
    return Declared(settings, _first_line(thing.__doc__), attributes)


def _parameters(thing: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    keyword_only = inspect.Parameter.KEYWORD_ONLY
    return {
        name: parameter
        for name, parameter in inspect.signature(thing).parameters.items()
        if parameter.kind is keyword_only
    }


def resolve(
    thing: Callable[..., Any], given: Mapping[str, Any], supplied: frozenset[str] = frozenset()
) -> tuple[dict[str, Any], list[tuple[str, str]]]:
    """All settings of ``thing`` with ``given`` filled in, and the problems found as (key, what is wrong).

    ``supplied`` are arguments that the harness passes itself. Raises ``PluginError`` where the annotations
    of ``thing`` cannot be evaluated.
    """
    parameters = {k: v for k, v in _parameters(thing).items() if k not in supplied}
    constructor = thing.__init__ if inspect.isclass(thing) else thing
    try:
        hints = typing.get_type_hints(constructor, include_extras=True)
    except (NameError, TypeError, SyntaxError) as error:
        raise PluginError(f"{thing.__module__}:{thing.__qualname__}: annotations cannot be read: {error}") from error
    settings: dict[str, Any] = {}
    problems = []
    for key in given:
        if key not in parameters:
            known = did_you_mean(key, parameters) or "; it has no settings"
            if key in inspect.signature(thing).parameters:
                known = f"; settings are keyword-only: write def __init__(self, *, {key}=...)"
            problems.append((key, f"unknown setting{known}"))
    for key, parameter in parameters.items():
        if key not in given:
            if parameter.default is parameter.empty:
                problems.append((key, "is required"))
            settings[key] = parameter.default
            continue
        settings[key] = given[key]
        try:
            settings[key] = TypeAdapter(hints.get(key, Any)).validate_json(as_json(given[key]), strict=True)
        except PydanticSchemaGenerationError:
            continue  # an annotation that cannot be checked, such as a Tensor
        except ValidationError as error:
            problems += [(key, explain(detail)) for detail in error.errors()[:1]]
    return settings, problems


def as_json(value: Any) -> str:
    """What a file holds, ready to be validated strictly: lists then become tuples, but "4" does not become 4."""
    return json.dumps(value, default=str)  # JSON has no dates: no setting takes one


def explain(detail: Mapping[str, Any]) -> str:
    """What a pydantic error means, with what was found: ``must be positive, got 0.0``."""
    context = detail.get("ctx", {})
    kind, found = detail["type"], detail.get("input")
    if kind == "missing":
        return "is required"
    if kind == "extra_forbidden":
        return "unknown key"
    if kind == "value_error":
        return str(context.get("error", detail["msg"]))
    limits = {"greater_than": "gt", "greater_than_equal": "ge", "less_than": "lt", "less_than_equal": "le"}
    words = {"gt": "greater than", "ge": "at least", "lt": "less than", "le": "at most"}
    if kind in limits:
        sign = limits[kind]
        bound = context[sign]
        wanted = "positive" if sign == "gt" and bound == 0 else f"{words[sign]} {bound:g}"
        return f"must be {wanted}, got {shown(found)}"
    if kind == "literal_error":
        allowed = context["expected"]
        return f"must be {allowed}, got {shown(found)}" + (
            did_you_mean(found, allowed.replace("'", "").replace(" or ", ", ").split(", "))
            if isinstance(found, str) and len(allowed) > 60
            else ""
        )
    if kind in {"union_tag_invalid", "union_tag_not_found"}:
        tags = context.get("expected_tags", "").replace("'", "")
        tag = context.get("tag")
        return f"unknown name {shown(tag)}{did_you_mean(str(tag), tags.split(', '))}" if tag else "needs a name"
    if kind == "too_short":
        return f"needs at least {context['min_length']}, got {shown(found)}"
    if kind == "too_long":
        return f"takes at most {context['max_length']}, got {shown(found)}"
    if kind == "string_too_short":
        return "must not be empty" if context["min_length"] == 1 else f"must be longer, got {shown(found)}"
    if kind in _TYPES:
        return f"must be {_TYPES[kind]}, got {shown(found)}"
    message = re.sub(r"^[\w ]+ should ", "", str(detail["msg"]))
    return f"must {message[0].lower()}{message[1:]}, got {shown(found)}"


# In TOML's words, where pydantic speaks of Python's or JSON's.
_TYPES = {
    "model_type": "a table",
    "model_attributes_type": "a table",
    "dict_type": "a table",
    "mapping_type": "a table",
    "list_type": "a list",
    "tuple_type": "a list",
    "string_type": "a string",
    "bool_type": "true or false",
    "int_type": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "none_required": "left out",
}
