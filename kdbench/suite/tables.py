"""The tables of a suite, from a file and those it extends; where each entry is written; how large they may be."""

from __future__ import annotations

import math
import os
import re
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from numbers import Integral, Real
from pathlib import Path
from typing import Any

from kdbench.errors import SuiteError, did_you_mean
from kdbench.words import shown

# In the wheel the suites are inside the package, in a checkout beside it.
SHIPPED = (Path(__file__).parent.parent / "suites", Path(__file__).parent.parent.parent / "suites")

MAX_BYTES = 2**20
MAX_ENTRIES = 1000
MAX_CHARACTERS = 10_000
MAX_DEPTH = 20
MAX_DOTS = 2000
MAX_EXTENDS = 20
LARGEST = 1e19
"""A number whose square still fits float32, in which losses are computed."""

GIVEN = "<suite>"
"""Names, in messages, a suite that is a mapping and no file."""

Location = tuple[int | str, ...]
"""The way to an entry: keys of tables, and positions in lists."""


class Tables(dict[str, Any]):
    """The tables of a suite, and the file and key under which each entry is written.

    ``origins`` holds what :meth:`where` cannot conclude: entries of other files, or under other keys.
    """

    def __init__(self, tables: Mapping[str, Any], path: Path | str) -> None:
        super().__init__(tables)
        self.path = path
        self.origins: dict[Location, tuple[Path | str, Location]] = {}

    def where(self, location: Location) -> str:
        """``file: key`` of an entry, or of the table in which it is missing.

        >>> Tables({}, "x.toml").where(("methods", 1, "temperature"))
        'x.toml: methods[1].temperature'
        """
        for depth in range(len(location), 0, -1):
            if location[:depth] in self.origins:
                path, written = self.origins[location[:depth]]
                return f"{path}: {key_of((*written, *location[depth:]))}".removesuffix(": ")
        return f"{self.path}: {key_of(location)}".removesuffix(": ")


def key_of(location: Iterable[int | str]) -> str:
    """A key as a suite's author would write it: ``pairs[0].recipe.lr``.

    >>> key_of(("teachers", "resnet.8", "recipe"))
    'teachers."resnet.8".recipe'
    """
    text = ""
    for part in location:
        if isinstance(part, int):
            text += f"[{part}]"
            continue
        plain = re.fullmatch(r"[^\s.\[\]\"'\\=]+", part) and part.isprintable()
        text += ("." if text else "") + (part if plain else shown(part).replace("'", '"'))
    return text


def shipped() -> dict[str, Path]:
    """The suites that come with the package, by name."""
    return {path.stem: path for folder in reversed(SHIPPED) for path in sorted(folder.glob("*.toml"))}


def locate(suite: str | Path) -> Path:
    """A path as it is, or the file of a shipped suite's name."""
    path = Path(suite)
    # Unlike Path.is_file, os.path.isfile takes names that the system does not allow.
    if os.path.isfile(path):
        return path
    named = shipped().get(str(suite))
    if named is not None:
        return named
    if os.path.isdir(path):
        raise SuiteError([f"{suite}: is a folder, not a suite file"])
    hint = did_you_mean(path.stem, shipped())
    raise SuiteError([f"{shown(str(suite))[1:-1]}: no such file, and no shipped suite of that name{hint}"])


def read(suite: Path | Mapping[str, Any], overrides: Sequence[str] = ()) -> Tables:
    """The tables of a suite file, or those given, after ``extends`` and ``--set KEY=VALUE``; not yet validated.

    Paths in given tables are relative to the working folder, and absolute in what is returned.
    """
    tables = _read_given(suite) if isinstance(suite, Mapping) else _read_extending(suite, ())
    return _overridden(tables, overrides)


def report_name(suite: Path | Mapping[str, Any], name: str) -> str:
    """What a suite's report is called: its ``name``, or its file's where it takes the name from another suite.

    Such a suite shares the other's results, and neither report takes the other's place. ``name``: the name after
    ``extends``.
    """
    own = suite if isinstance(suite, Mapping) else _parse(suite)
    if "extends" not in own or "name" in own:
        return name
    return suite.stem if isinstance(suite, Path) and suite.stem != name else f"{name}-extended"


def plugin_files(folder: Path, tables: Mapping[str, Any]) -> list[Path]:
    """The local plugin files that a suite names, relative to ``folder``."""
    plugins = tables.get("plugins", ())
    if not isinstance(plugins, list):
        return []  # the schema says what is wrong
    return [folder / name for name in plugins if isinstance(name, str)]


# ---- tables given from Python


def _read_given(given: Mapping[str, Any]) -> Tables:
    plain = _plain(given, ())
    _check_size(plain, lambda location: f"{GIVEN}: {key_of(location)}".removesuffix(": "))
    tables = _extended(plain, GIVEN, Path.cwd(), ())
    anchor(tables, Path.cwd())
    return tables


def _plain(value: Any, location: Location) -> Any:
    """A value as TOML has it: tuples, ranges and the numbers of other libraries become lists and numbers."""
    where = f"{GIVEN}: {key_of(location)}".removesuffix(": ")
    if len(location) > MAX_DEPTH:
        raise SuiteError([f"{GIVEN}: {key_of(location[:3])}: is nested more than {MAX_DEPTH} levels deep"])
    if isinstance(value, bool | str):
        return value
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Integral):
        return int(value)
    if isinstance(value, Real):
        return float(value)
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise SuiteError([f"{where}: keys must be strings, got {shown(key)}"])
        return {key: _plain(item, (*location, key)) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, bytes):
        if len(value) > MAX_ENTRIES:
            raise SuiteError([f"{where}: has {len(value):,} entries; at most {MAX_ENTRIES:,} are allowed"])
        return [_plain(item, (*location, index)) for index, item in enumerate(value)]
    hint = "; leave the key out" if value is None else ""
    if isinstance(value, type):
        hint = "; give classes to the argument plugins, and name them here"
    raise SuiteError([f"{where}: must be a string, number, boolean, list or mapping, got {shown(value)}{hint}"])


# ---- one file


def _read_extending(path: Path, seen: tuple[Path, ...]) -> Tables:
    path = path.resolve() if seen else path
    if path.resolve() in seen:
        raise SuiteError([f"{path}: extends itself"])
    if len(seen) > MAX_EXTENDS:
        raise SuiteError([f"{path}: is in a chain of more than {MAX_EXTENDS} files that extend each other"])
    tables = _parse(path)
    return _extended(tables, path, path.parent, (*seen, path.resolve()))


def _parse(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise SuiteError([f"{path}: no such file"]) from None
    except OSError as error:
        raise SuiteError([f"{path}: cannot be read: {error.strerror or error}"]) from None
    if len(content) > MAX_BYTES:
        raise SuiteError([f"{path}: is larger than {MAX_BYTES:,} bytes, the limit for a suite"])
    # The parser's time grows with the square of a dotted key's length.
    for number, line in enumerate(content.splitlines(), 1):
        if line.count(b".") > MAX_DOTS:
            raise SuiteError([f"{path}: line {number} has more than {MAX_DOTS:,} dots, the limit for a suite"])
    try:
        tables = tomllib.loads(content.decode("utf-8-sig"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SuiteError([f"{path}: is not valid TOML: {error}"]) from None
    except RecursionError:
        raise SuiteError([f"{path}: is nested more than {MAX_DEPTH} levels deep"]) from None
    except ValueError:  # Python's limit on the digits of an integer
        raise SuiteError([f"{path}: contains an integer of thousands of digits; numbers must fit 64 bits"]) from None
    _check_size(tables, lambda location: f"{path}: {key_of(location)}".removesuffix(": "))
    return tables


def _check_size(tables: Mapping[str, Any], where: Callable[[Location], str]) -> None:
    """Refuse contents that no suite needs, and that would be slow or fail later."""
    waiting: list[tuple[Location, Any]] = [((), tables)]
    while waiting:
        location, value = waiting.pop()
        if isinstance(value, dict | list) and len(value) > MAX_ENTRIES:
            raise SuiteError([f"{where(location)}: has {len(value):,} entries; at most {MAX_ENTRIES:,} are allowed"])
        if len(location) > MAX_DEPTH:
            raise SuiteError([f"{where(location[:3])}: is nested more than {MAX_DEPTH} levels deep"])
        if isinstance(value, dict):
            waiting += (((*location, key), item) for key, item in reversed(value.items()))
            value = max(value, key=len, default="")  # the longest of its keys
        elif isinstance(value, list):
            waiting += (((*location, i), item) for i, item in reversed(list(enumerate(value))))
        if isinstance(value, str) and len(value) > MAX_CHARACTERS:
            text = f"has {len(value):,} characters; at most {MAX_CHARACTERS:,} are allowed"
            raise SuiteError([f"{where(location)}: {text}"])
        if isinstance(value, str) and "\0" in value:
            raise SuiteError([f"{where(location)}: must not contain a NUL character, got {shown(value)}"])
        if isinstance(value, int) and not -(2**63) <= value < 2**63:
            raise SuiteError([f"{where(location)}: must fit 64 bits, got {_short_integer(value)}"])
        if isinstance(value, float) and not math.isfinite(value):
            raise SuiteError([f"{where(location)}: must be a finite number, got {value}"])
        if isinstance(value, float) and abs(value) > LARGEST:
            raise SuiteError([f"{where(location)}: must be at most {LARGEST:g} in magnitude, got {value}"])


def _short_integer(value: int) -> str:
    # Python refuses to write integers of more than some thousand digits.
    return f"{value:,}" if abs(value) < 10**30 else f"an integer of {value.bit_length()} bits"


# ---- extends


def _extended(tables: dict[str, Any], path: Path | str, folder: Path, seen: tuple[Path, ...]) -> Tables:
    """``tables`` over those that they extend. ``folder``: what their paths are relative to."""
    base = tables.pop("extends", None)
    if base is None:
        return Tables(tables, path)
    if not isinstance(base, str):
        raise SuiteError([f"{path}: extends: must be a suite's path or name, got {shown(base)}"])
    beside = folder / base
    try:
        parent = beside if os.path.isfile(beside) else locate(base)
    except SuiteError as error:
        raise SuiteError([f"{path}: extends: {problem}" for problem in error.problems]) from None
    inherited = _read_extending(parent, seen)
    anchor(inherited, parent.resolve().parent)
    added = tables.pop("add_methods", [])
    if not isinstance(added, list):
        raise SuiteError([f"{path}: add_methods: must be an array of tables, [[add_methods]], got {shown(added)}"])
    merged = Tables(_merge(inherited, tables), path)
    merged.origins = dict(_origins(inherited, tables))
    methods = merged.get("methods", [])
    if added and isinstance(methods, list):
        merged["methods"] = [*methods, *added]
        holder, written = merged.origins.get(("methods",), (path, ("methods",)))
        for i in range(len(methods)):
            merged.origins.setdefault(("methods", i), (holder, (*written, i)))
        for i in range(len(added)):
            merged.origins["methods", len(methods) + i] = path, ("add_methods", i)
        merged.origins[("methods",)] = path, ("add_methods",)
    if "pairs" in tables and isinstance(merged.get("teachers"), dict):
        # Inherited teachers go with the inherited pairs; one that the suite itself describes for no pair is a mistake.
        kept = {str(pair.get("teacher")) for pair in rows(tables, "pairs")} | set(table(tables.get("teachers")))
        merged["teachers"] = {name: teacher for name, teacher in merged["teachers"].items() if name in kept}
    return merged


def _origins(inherited: Tables, own: Mapping[str, Any]) -> Iterator[tuple[Location, tuple[Path | str, Location]]]:
    """Where the inherited entries are written that ``own`` does not replace."""
    for location, origin in inherited.origins.items():
        if not _replaced(own, location):
            yield location, origin
    for location in _leaves(inherited):
        if location not in inherited.origins and not _replaced(own, location):
            yield location, (inherited.path, location)


def _replaced(own: Mapping[str, Any], location: Location) -> bool:
    value: Any = own
    for part in location:
        if not isinstance(value, dict):
            return True
        if part not in value:
            return False
        value = value[part]
    return True


def _leaves(tables: Mapping[str, Any], place: Location = ()) -> Iterator[Location]:
    """Tables and the values in them; a list is one value, since it is replaced as a whole."""
    for key, value in tables.items():
        yield (*place, key)
        if isinstance(value, dict):
            yield from _leaves(value, (*place, key))


def anchor(tables: dict[str, Any], folder: Path) -> None:
    """Paths in a suite are relative to its own file, also where another one extends it."""
    if isinstance(tables.get("plugins"), list):
        tables["plugins"] = [str(folder / name) if isinstance(name, str) else name for name in tables["plugins"]]
    for teacher in table(tables.get("teachers")).values():
        weights = table(teacher).get("weights")
        if isinstance(weights, list):
            teacher["weights"] = [_anchored(folder, one) for one in weights]
        elif weights is not None:
            teacher["weights"] = _anchored(folder, weights)


def _anchored(folder: Path, weights: object) -> object:
    """A file's path; anything else may be a name in a model library."""
    is_file = isinstance(weights, str) and os.path.isfile(folder / weights)
    return str(folder / str(weights)) if is_file else weights


def _merge(base: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """``other`` over ``base``: tables key by key, all else (also lists) as a whole."""
    merged = dict(base)
    for key, value in other.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _merge(merged[key], value) if both else value
    return merged


# ---- --set

# A part of a key that holds a dot itself is quoted, as in TOML: methods."kd-2.5".temperature=2
_KEY_PART = re.compile(r'"([^"]*)"|([^".]+)')


def _overridden(tables: Tables, overrides: Sequence[str]) -> Tables:
    for override in overrides:
        location = _override(tables, override)
        # Mistakes on the command line are reported with the option, not with a file.
        tables.origins = {
            place: origin for place, origin in tables.origins.items() if place[: len(location)] != location
        }
        if not tables.where(location).startswith(f"{tables.path}: "):
            tables.origins[location] = (tables.path, location)
    return tables


def split_override(override: str, option: str = "--set") -> tuple[str, str]:
    """The key and the value of ``KEY=VALUE``. Raises ``SuiteError`` where one of them is missing.

    >>> split_override("recipe.epochs = 3")
    ('recipe.epochs', ' 3')
    """
    key, equals, text = override.partition("=")
    if not equals or not key.strip():
        example = "recipe.epochs=3" if option == "--set" else "gpus=0.5"
        raise SuiteError([f"{option} {override}: must be KEY=VALUE, as in {example}"])
    return key.strip(), text


def setting(given: str, option: str) -> tuple[str, Any]:
    """The key and the value, as in a suite file, of ``KEY=VALUE`` after ``option``.

    >>> setting("gpus=0.5", "--executor-set"), setting("address=auto", "--executor-set")
    (('gpus', 0.5), ('address', 'auto'))
    """
    key, text = split_override(given, option)
    return key, _value(text)


def _override(tables: Tables, override: str) -> Location:
    """Apply ``KEY=VALUE``; returns the location of the changed entry."""
    key, text = split_override(override)
    value = _value(text)
    _check_size({"": value}, lambda location: f"{tables.path}: {key}")
    place: Any = tables
    parts = [quoted or bare for quoted, bare in _KEY_PART.findall(key)]
    found: list[int | str] = []
    for depth, part in enumerate(parts):
        last = depth == len(parts) - 1
        if isinstance(place, list):
            item = _list_index(place, part)
            if item is None:
                names = [n for row in place if isinstance(row, dict) for n in _row_names(row)]
                raise SuiteError(
                    [
                        f"--set {override}: '{part}' is not an entry of {'.'.join(parts[:depth])}"
                        f"{did_you_mean(part, names)}"
                    ]
                )
            if last:
                place[item] = value
            place = place[item]
            found.append(item)
        elif isinstance(place, dict):
            if last:
                place[part] = value
            place = place.setdefault(part, {})
            found.append(part)
        else:
            raise SuiteError([f"--set {override}: {'.'.join(parts[:depth])} is a value, not a table"])
    return tuple(found)


def _value(text: str) -> Any:
    """A value in TOML; a bare word is a string."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except (ValueError, RecursionError):
        return text


def _row_names(row: Mapping[str, Any]) -> list[str]:
    names = [row.get("label"), row.get("name")]
    if "teacher" in row and "student" in row:
        names.append(f"{row['teacher']}:{row['student']}")
    return [name for name in names if isinstance(name, str) and name]


def _list_index(rows: list[Any], part: str) -> int | None:
    if part.isdigit() and len(part) < 6 and int(part) < len(rows):
        return int(part)
    for index, row in enumerate(rows):
        if isinstance(row, dict) and part in _row_names(row):
            return index
    return None


# ---- tables that may be wrong


def table(value: Any) -> dict[str, Any]:
    """A table; an empty one for other values, which the schema reports."""
    return value if isinstance(value, dict) else {}


def rows(tables: Mapping[str, Any], key: str) -> list[dict[str, Any]]:
    """The tables of a list, likewise."""
    found = tables.get(key)
    return [table(row) for row in found] if isinstance(found, list) else []
