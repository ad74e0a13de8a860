"""The source of a class that is not in an imported file: from a notebook cell, or from the running script.

Part of it are the statement that defines the class, and whatever this uses of the notebook, directly or not: functions
and classes by their own statements, from whichever cell, plain values as they are now, and local files that are
imported. Plain class attributes and default arguments count with the values that they have. The rest of the cell is no
part of it, nor is what installed packages provide.
"""

from __future__ import annotations

import ast
import builtins
import inspect
import linecache
import symtable
import sys
import sysconfig
import types
import warnings
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from importlib.machinery import SourceFileLoader
from pathlib import Path
from typing import Any

from kdbench.discovery.sources import FIRST_PARTY, Source, import_root, read_source
from kdbench.errors import PluginError

_LITERALS = (bool, int, float, complex, str, bytes, type(None))
_DESCRIBED = {("torch", "dtype"), ("torch", "device"), ("types", "UnionType"), ("types", "GenericAlias")}
"""Types of values that their ``repr`` describes completely."""
_LIBRARIES = {Path(path) for path in sysconfig.get_paths().values()}


def read_cell(cls: type) -> Source:
    """The source of a class as ``<name>.py``, and the local files that it imports.

    Raises :class:`PluginError` where the source is not known, or uses what cannot be identified.
    """
    return _Reader(cls).read()


def check_current(module: types.ModuleType) -> None:
    """Refuse a module whose file was edited since it was imported: its code is not what its file would identify.

    Compared are functions and methods, and constants in capitals. Raises :class:`PluginError`.
    """
    spec = getattr(module, "__spec__", None)
    if spec is None or type(spec.loader) is not SourceFileLoader or spec.origin is None:
        return  # such as the modules that pytest rewrites
    path = Path(spec.origin)
    tree, written = _codes(path)
    members = [item for item in vars(module).values() if getattr(item, "__module__", None) == module.__name__]
    functions = [function for member in members if hasattr(member, "__qualname__") for function in _functions(member)]
    live = [function.__code__ for function in functions if function.__code__.co_filename == str(path)]
    changed = [code.co_qualname for code in live if _content(code) not in written.get(code.co_qualname, ())]
    for node in tree.body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and node.targets[0].id.isupper():
            name = node.targets[0].id
            with suppress(ValueError):
                value = ast.literal_eval(node.value)
                if _is_literal(value) and name in vars(module) and vars(module)[name] != value:
                    changed.append(name)
    if changed:
        raise PluginError(
            f"{path}: was edited after it was imported ({changed[0]} differs); restart Python, or reload the module "
            f"{module.__name__} and what imports it"
        )


def _codes(path: Path) -> tuple[ast.Module, dict[str, list[Any]]]:
    """A file's statements, and the code of its functions by qualified name."""
    try:
        source = path.read_bytes()
        tree = ast.parse(source)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            waiting = [compile(source, str(path), "exec", dont_inherit=True)]
    except (OSError, SyntaxError, ValueError) as error:
        raise PluginError(f"{path}: was imported, but can no longer be read: {error}") from None
    found: dict[str, list[Any]] = {}
    for code in waiting:
        found.setdefault(code.co_qualname, []).append(_content(code))
        waiting += [item for item in code.co_consts if isinstance(item, types.CodeType)]
    return tree, found


def _content(code: types.CodeType) -> Any:
    """Code without its positions in the file."""
    constants = [(type(i), _content(i) if isinstance(i, types.CodeType) else i) for i in code.co_consts]
    return code.co_code, code.co_names, code.co_varnames, code.co_freevars, constants


@dataclass(frozen=True)
class _Cell:
    """A text that ``linecache`` knows, in statements, and the global names that its code sees."""

    statements: list[tuple[ast.stmt, str]]
    names: dict[str, Any]

    def at(self, line: int) -> tuple[ast.stmt, str] | None:
        """The statement of the top level that a line is part of."""
        for node, text in self.statements:
            if _first_line(node) <= line <= (node.end_lineno or node.lineno):
                return node, text
        return None

    def binding(self, name: str) -> list[tuple[ast.stmt, str]]:
        """The statements of the top level that give ``name`` a value."""
        return [(node, text) for node, text in self.statements if name in _bound(text)]


class _Reader:
    def __init__(self, cls: type) -> None:
        self.cls = cls
        self.parts: list[str] = []
        self.files: dict[str, bytes] = {}
        self.seen = {cls.__name__}

    def read(self) -> Source:
        found = _definition(self.cls)
        if found is None:
            raise PluginError(
                f"class {self.cls.__qualname__}: its source code, which identifies its trials, was not found; "
                "define it with a method at the top level of a notebook's cell, or write it to a file and name the file"
            )
        # In the order of names, not of cells: where a helper is defined is no part of what it does.
        waiting = [found]
        self.parts += _evaluated(self.cls)
        for text, cell in waiting:
            self.parts.append(text)
            for name in sorted(_used(text) - self.seen):
                self.seen.add(name)
                if name in cell.names:
                    waiting += self._use(name, cell)
        text = "\n\n".join(reversed(self.parts)) + "\n"
        return Source({**self.files, f"{self.cls.__name__}.py": text.encode("utf-8", "surrogatepass")})

    def _use(self, name: str, cell: _Cell) -> Iterator[tuple[str, _Cell]]:
        """A value that the class uses: the statements behind it, or a line that describes it."""
        value = cell.names[name]
        if isinstance(value, type):
            # The class that was inherited from, also where its cell was run again since.
            value = next((base for base in self.cls.__mro__[1:] if base.__name__ == name), value)
        if isinstance(value, types.ModuleType):
            self._add_files(value.__name__)
            self.parts.append(f"import {value.__name__} as {name}")
        elif _is_literal(value):
            self.parts.append(f"{name} = {value!r}")
        elif (known := _name_elsewhere(value, self.cls.__module__)) is not None:
            self._add_files(getattr(value, "__module__", None) or "")
            self.parts.append(f"{name} = {known}")
        elif (found := _definition(value)) is not None:
            self.parts += _evaluated(value)
            yield found
        elif statements := cell.binding(name):
            self.parts += _evaluated(value) if isinstance(value, type) else []
            for node, text in statements:
                for module in _imported(node):
                    self._add_files(module)
                yield text, cell
        else:
            raise PluginError(
                f"class {self.cls.__qualname__}: uses '{name}', of type {type(value).__name__}, from another cell, "
                f"which cannot identify a trial; define '{name}' in the class's cell, or both in a file"
            )

    def _add_files(self, module: str) -> None:
        """The files of an imported module that no package has installed, and of those below it."""
        if module.partition(".")[0] in {FIRST_PARTY, self.cls.__module__, ""}:
            return
        for name, loaded in list(sys.modules.items()):
            if name != module and not name.startswith(f"{module}."):
                continue
            path = Path(getattr(loaded, "__file__", None) or "")
            if path.suffix != ".py" or not path.is_file():
                continue
            root = import_root(path)
            if root not in _LIBRARIES and not any(root.glob("*.dist-info")):
                check_current(loaded)
                self.files.update(read_source(path).files)


def _definition(value: Any) -> tuple[str, _Cell] | None:
    """The statement that defines a class or function, and the cell that it is in."""
    if "<locals>" in getattr(value, "__qualname__", "<locals>"):
        return None  # what surrounds it decides what it does
    for function in _functions(value):
        cell = _cell(function)
        found = cell.at(function.__code__.co_firstlineno) if cell is not None else None
        if cell is not None and found is not None and value.__name__ in _bound(found[1]):
            return found[1], cell
    return None


def _evaluated(value: Any) -> list[str]:
    """Plain attributes of a class, and default arguments, which were evaluated when its cell ran."""
    lines = []
    for function in _functions(value):
        for name in ("__defaults__", "__kwdefaults__"):
            given = getattr(function, name)
            if given and _is_literal(given):
                lines.append(f"{function.__qualname__}.{name} = {given!r}")
    for name, item in vars(value).items() if isinstance(value, type) else ():
        if not name.startswith("__") and _is_literal(item):
            lines.append(f"{value.__qualname__}.{name} = {item!r}")
    return sorted(lines, reverse=True)


def _functions(value: Any) -> Iterator[types.FunctionType]:
    """A function, or those that are defined in the body of a class."""
    members = vars(value).values() if isinstance(value, type) else [value]
    for member in members:
        inner = member.fget if isinstance(member, property) else getattr(member, "__func__", member)
        inner = inspect.unwrap(inner) if callable(inner) else inner
        if not isinstance(inner, types.FunctionType):
            continue
        if not isinstance(value, type) or inner.__qualname__.startswith(f"{value.__qualname__}."):
            yield inner


def _cell(function: types.FunctionType) -> _Cell | None:
    # IPython keeps the text of each cell in linecache, under the file name that its code has.
    lines = linecache.getlines(function.__code__.co_filename, function.__globals__)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a doubtful escape, which was reported when the cell ran
            tree = ast.parse("".join(lines))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    texts = [(node, "".join(lines[_first_line(node) - 1 : node.end_lineno]).rstrip()) for node in tree.body]
    return _Cell(texts, function.__globals__)


def _first_line(node: ast.stmt) -> int:
    decorators: list[ast.expr] = getattr(node, "decorator_list", [])
    return min([node.lineno, *(decorator.lineno for decorator in decorators)])


def _used(text: str) -> set[str]:
    """The global names that a statement uses, in whichever scope."""
    found = set()
    waiting = [symtable.symtable(text, "<cell>", "exec")]
    for table in waiting:
        found |= {symbol.get_name() for symbol in table.get_symbols() if symbol.is_global()}
        waiting += table.get_children()
    return found - set(vars(builtins))


def _bound(text: str) -> set[str]:
    try:
        symbols = symtable.symtable(text, "<cell>", "exec").get_symbols()
    except SyntaxError:  # what notebooks alone allow, such as await outside a function
        return set()
    return {symbol.get_name() for symbol in symbols if symbol.is_assigned() or symbol.is_imported()}


def _is_literal(value: Any) -> bool:
    if type(value) in (list, tuple):
        return all(map(_is_literal, value))
    if type(value) is dict:
        return all(map(_is_literal, [*value, *value.values()]))
    return type(value) in _LITERALS


def _name_elsewhere(value: Any, here: str) -> str | None:
    """An expression for what is not defined ``here``: a function or class by its name, a type in words."""
    kind = type(value)
    if kind.__module__ == "typing" or (kind.__module__, kind.__name__) in _DESCRIBED:
        text = repr(value)
        return None if " at 0x" in text or f"{here}." in text else repr(text)
    name = getattr(value, "__qualname__", None) or getattr(value, "__name__", None)
    module = getattr(value, "__module__", None)
    if not isinstance(name, str) or not callable(value) or module == here or "<" in name:
        return None
    return f"{module or kind.__name__}.{name}"


def _imported(node: ast.stmt) -> list[str]:
    if isinstance(node, ast.ImportFrom):
        return [node.module or ""]
    return [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
