"""Read a suite file; report every problem at once, each as ``file: key.path: what is wrong``."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, get_args

from pydantic import BaseModel, ValidationError

from kdbench.errors import SuiteError, did_you_mean, nearest
from kdbench.recipe import Augmentation, Recipe
from kdbench.settings import as_json, explain
from kdbench.suite import schema
from kdbench.suite.schema import Suite

# In the wheel the suites lie inside the package, in a checkout beside it.
SHIPPED = (Path(__file__).parent.parent / "suites", Path(__file__).parent.parent.parent / "suites")


class Catalogue(Protocol):
    """What :func:`load` asks about names and settings; each answer is a list of (key, what is wrong)."""

    def method_problems(self, name: str, settings: Mapping[str, Any]) -> list[tuple[str, str]]:
        """Problems of a method's name (key '') or settings."""

    def model_problems(self, name: str) -> list[tuple[str, str]]:
        """Problems of a model's name."""

    def data_problems(self, name: str, settings: Mapping[str, Any]) -> list[tuple[str, str]]:
        """Problems of a data set's name or settings."""


def shipped() -> dict[str, Path]:
    """The suites that come with the package, by name."""
    return {path.stem: path for folder in reversed(SHIPPED) for path in sorted(folder.glob("*.toml"))}


def locate(suite: str | Path) -> Path:
    """A path as it is, or the file of a shipped suite's name."""
    path = Path(suite)
    if path.is_file():
        return path
    named = shipped().get(str(suite))
    if named is not None:
        return named
    if path.is_dir():
        raise SuiteError([f"{suite}: is a folder, not a suite file"])
    hint = did_you_mean(path.stem, shipped())
    raise SuiteError([f"{suite}: no such file, and no shipped suite of that name{hint}"])


def read(path: Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """The tables of a suite file, after ``extends`` and ``--set KEY=VALUE``; not yet validated."""
    tables = _read_extending(path, ())
    for override in overrides:
        _override(tables, override)
    return tables


def report_name(path: Path, suite: str) -> str:
    """What the report of a suite file is called: its ``name``, or its file's where it takes the name from another.

    Such a suite shares the other's results, and neither report takes the other's place. ``suite``: the name after
    ``extends``.
    """
    own = tomllib.loads(path.read_text(encoding="utf-8"))
    if "extends" not in own or "name" in own:
        return suite
    return path.stem if path.stem != suite else f"{suite}-extended"


def plugin_files(path: Path, tables: Mapping[str, Any]) -> list[Path]:
    """The local plugin files that a suite names, relative to the suite file."""
    plugins = tables.get("plugins", ())
    if not isinstance(plugins, list):
        return []  # the schema says what is wrong
    return [path.parent / name for name in plugins if isinstance(name, str)]


def load(path: Path, tables: Mapping[str, Any], catalogue: Catalogue | None = None) -> Suite:
    """Validate the tables of a suite. Raises :class:`SuiteError` with every problem found."""
    problems: list[tuple[str, str]] = []
    suite = None
    try:
        suite = Suite.model_validate_json(as_json(tables), strict=True)
    except ValidationError as error:
        problems += _schema_problems(error)
    problems += _pair_problems(tables)
    if catalogue is not None:
        problems += _name_problems(tables, catalogue)
    if problems or suite is None:
        raise SuiteError([f"{path}: {key}: {what}" for key, what in problems])
    return suite


def pair_recipe(suite: Suite, override: Mapping[str, Any]) -> Recipe:
    """The suite's recipe with a pair's or teacher's differences."""
    return _recipe({**suite.recipe.model_dump(mode="json"), **override})


def _recipe(table: Mapping[str, Any]) -> Recipe:
    return Recipe.model_validate_json(as_json(table), strict=True)


def _read_extending(path: Path, seen: tuple[Path, ...]) -> dict[str, Any]:
    path = path.resolve() if seen else path
    if path.resolve() in seen:
        raise SuiteError([f"{path}: extends itself"])
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise SuiteError([f"{path}: no such file"]) from None
    except OSError as error:
        raise SuiteError([f"{path}: cannot be read: {error.strerror or error}"]) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SuiteError([f"{path}: is no valid TOML: {error}"]) from None
    base = tables.pop("extends", None)
    if base is None:
        return tables
    if not isinstance(base, str):
        raise SuiteError([f"{path}: extends: must be a suite's path or name, got {base!r}"])
    beside = path.parent / base
    try:
        parent = beside if beside.is_file() else locate(base)
    except SuiteError as error:
        raise SuiteError([f"{path}: extends: {problem}" for problem in error.problems]) from None
    inherited = _read_extending(parent, (*seen, path.resolve()))
    _anchor(inherited, parent.resolve().parent)
    added = tables.pop("add_methods", [])
    if not isinstance(added, list):
        raise SuiteError([f"{path}: add_methods: must be an array of tables, [[add_methods]], got {added!r}"])
    merged = _merge(inherited, tables)
    if added and isinstance(merged.get("methods", []), list):
        merged["methods"] = [*merged.get("methods", []), *added]
    if "pairs" in tables and isinstance(merged.get("teachers"), dict):
        # Inherited teachers go with the inherited pairs; one that the suite itself describes for no pair is a mistake.
        kept = {str(pair.get("teacher")) for pair in _rows(tables, "pairs")} | set(_table(tables.get("teachers")))
        merged["teachers"] = {name: teacher for name, teacher in merged["teachers"].items() if name in kept}
    return merged


def _anchor(tables: dict[str, Any], folder: Path) -> None:
    """Paths in a suite are relative to its own file, also where another one extends it."""
    if isinstance(tables.get("plugins"), list):
        tables["plugins"] = [str(folder / name) if isinstance(name, str) else name for name in tables["plugins"]]
    for teacher in _table(tables.get("teachers")).values():
        weights = _table(teacher).get("weights")
        if isinstance(weights, str) and (folder / weights).is_file():
            teacher["weights"] = str(folder / weights)


def _merge(base: dict[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """``other`` over ``base``: tables key by key, all else (also lists) as a whole."""
    merged = dict(base)
    for key, value in other.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _merge(merged[key], value) if both else value
    return merged


# A part of a key that holds a dot itself is quoted, as in TOML: methods."kd-2.5".temperature=2
_KEY_PART = re.compile(r'"([^"]*)"|([^".]+)')


def _override(tables: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key.strip():
        raise SuiteError([f"--set {override}: must be KEY=VALUE, as in recipe.epochs=3"])
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text  # a bare word is a string
    place: Any = tables
    parts = [quoted or bare for quoted, bare in _KEY_PART.findall(key.strip())]
    for depth, part in enumerate(parts):
        last = depth == len(parts) - 1
        if isinstance(place, list):
            item = _list_index(place, part)
            if item is None:
                names = [n for row in place if isinstance(row, dict) for n in _row_names(row)]
                raise SuiteError(
                    [f"--set {override}: '{part}' is no entry of {'.'.join(parts[:depth])}{did_you_mean(part, names)}"]
                )
            if last:
                place[item] = value
            place = place[item]
        elif isinstance(place, dict):
            if last:
                place[part] = value
            place = place.setdefault(part, {})
        else:
            raise SuiteError([f"--set {override}: {'.'.join(parts[:depth])} is a value, not a table"])


def _row_names(row: Mapping[str, Any]) -> list[str]:
    names = [row.get("label"), row.get("name")]
    if "teacher" in row and "student" in row:
        names.append(f"{row['teacher']}:{row['student']}")
    return [name for name in names if isinstance(name, str) and name]


def _list_index(rows: list[Any], part: str) -> int | None:
    if part.isdigit() and int(part) < len(rows):
        return int(part)
    for index, row in enumerate(rows):
        if isinstance(row, dict) and part in _row_names(row):
            return index
    return None


def _where(location: Iterable[int | str]) -> str:
    text = ""
    for part in location:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else str(part)
    # Pydantic names the chosen member of a union; the file does not.
    return re.sub(r"(augmentation\[\d+\])\.[a-z_]+(?=\.|$)", r"\1", text)


def _schema_problems(error: ValidationError, table: type[BaseModel] = Suite) -> list[tuple[str, str]]:
    details = error.errors()
    wrong = {detail["loc"][:depth] for detail in details for depth in range(len(detail["loc"]))}
    return [
        (_where(detail["loc"]), _what(detail, table))
        for detail in details
        # Pydantic counts a list's good entries: with a bad one reported, "too short" says nothing.
        if not (detail["type"] == "too_short" and detail["loc"] in wrong)
    ]


def _what(detail: Mapping[str, Any], table: type[BaseModel]) -> str:
    what = explain(detail)
    if detail["type"] != "extra_forbidden":
        return what
    for part in detail["loc"][:-1]:
        table = _TABLES.get((table, part), table)
    return what + did_you_mean(str(detail["loc"][-1]), table.model_fields)


_TABLES: dict[tuple[type[BaseModel], int | str], type[BaseModel]] = {
    (Suite, "data"): schema.Data,
    (Suite, "recipe"): Recipe,
    (Suite, "pairs"): schema.Pair,
    (Suite, "methods"): schema.Method,
    (Suite, "teachers"): schema.Teacher,
    **{(Recipe, get_args(a.model_fields["name"].annotation)[0]): a for a in get_args(get_args(Augmentation)[0])},
}


def _pair_problems(tables: Mapping[str, Any]) -> Iterable[tuple[str, str]]:
    """What pairs and teachers change, and whether it goes together; also where other parts are wrong."""
    recipe, pairs, teachers = _table(tables.get("recipe")), _rows(tables, "pairs"), _table(tables.get("teachers"))
    labels = {str(row.get("label") or row["name"]) for row in _rows(tables, "methods") if "name" in row}
    for index, pair in enumerate(pairs):
        yield from _recipe_problems(recipe, f"pairs[{index}].recipe", _table(pair.get("recipe")))
        for label in _table(pair.get("methods")) if labels else ():
            if label not in labels:
                yield f"pairs[{index}].methods.{label}", f"is no method of this suite{did_you_mean(label, labels)}"
    used = {str(pair["teacher"]) for pair in pairs if "teacher" in pair}
    for name, teacher in teachers.items():
        if used and name not in used:
            yield f"teachers.{name}", f"no pair has this teacher{did_you_mean(name, used)}"
        yield from _recipe_problems(recipe, f"teachers.{name}.recipe", _table(_table(teacher).get("recipe")))
    recipes = [recipe, *(_table(pair.get("recipe")) for pair in pairs)]
    if any(r.get("selection") == "validation" for r in recipes) and not _table(tables.get("data")).get("validation"):
        yield (
            "recipe.selection",
            "'validation' needs data.validation, the images to cut from the training set",
        )


def _recipe_problems(recipe: Mapping[str, Any], key: str, override: Mapping[str, Any]) -> Iterable[tuple[str, str]]:
    try:
        _recipe({**recipe, **override})
    except ValidationError as error:
        for where, what in _schema_problems(error, Recipe):
            # What is wrong with the suite's own recipe is reported there.
            if where.partition("[")[0].partition(".")[0] in override or (not where and _is_recipe(recipe)):
                yield f"{key}.{where}".rstrip("."), what


def _is_recipe(table: Mapping[str, Any]) -> bool:
    try:
        _recipe(table)
    except ValidationError:
        return False
    return True


def _name_problems(tables: Mapping[str, Any], catalogue: Catalogue) -> Iterable[tuple[str, str]]:
    """Unknown names and wrong settings, also where other parts of the file are wrong."""
    data = _table(tables.get("data"))
    for key, what in _setting_problems(data, schema.Data, catalogue.data_problems):
        yield f"data.{key}", what
    methods = {}
    for index, table in enumerate(_rows(tables, "methods")):
        for key, what in _setting_problems(table, schema.Method, catalogue.method_problems):
            yield f"methods[{index}].{key}", what
        if isinstance(table.get("name"), str):
            settings = {k: v for k, v in table.items() if k not in schema.Method.model_fields}
            methods[str(table.get("label") or table["name"])] = table["name"], settings
    teachers = _table(tables.get("teachers"))
    for index, pair in enumerate(_rows(tables, "pairs")):
        model = _table(teachers.get(str(pair.get("teacher")))).get("model") or pair.get("teacher")
        for role, name in (("teacher", model), ("student", pair.get("student"))):
            for _, what in catalogue.model_problems(name) if isinstance(name, str) else ():
                yield f"pairs[{index}].{role}", what
        for label, override in _table(pair.get("methods")).items():
            if label in methods and isinstance(override, dict):
                name, settings = methods[label]
                known = {key for key, _ in catalogue.method_problems(name, settings)}
                for key, what in catalogue.method_problems(name, {**settings, **override}):
                    if key not in known:
                        yield f"pairs[{index}].methods.{label}.{key}", what


def _setting_problems(
    table: Mapping[str, Any],
    keys: type[BaseModel],
    ask: Callable[[str, Mapping[str, Any]], Iterable[tuple[str, str]]],
) -> Iterable[tuple[str, str]]:
    """Wrong settings of what a table names; a key that is none may be a misspelt one of the table's own."""
    settings = {k: v for k, v in table.items() if k not in keys.model_fields}
    misspelt = {
        key: f"unknown key{did_you_mean(key, keys.model_fields)}"
        for key in settings
        if nearest(key, keys.model_fields) is not None
    }
    if not isinstance(table.get("name"), str):
        # Whose settings they are is not known.
        yield from misspelt.items()
        return
    for key, what in ask(table["name"], settings):
        unknown = what.startswith("unknown setting") and "did you mean" not in what
        yield key or "name", misspelt.get(key, what) if unknown else what


# The schema says what is no table and no list; these pass over it.
def _table(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _rows(tables: Mapping[str, Any], key: str) -> list[dict[str, Any]]:
    rows = tables.get(key)
    return [_table(row) for row in rows] if isinstance(rows, list) else []
