"""The code of a plugin's offer: its file, the local files that it imports, and a digest of their syntax trees.

Nothing is imported. Comments, docstrings and formatting do not change the digest, which is computed from syntax trees.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.metadata
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

FIRST_PARTY = "kdbench"
"""Known by its version and protocol, never by the source of its own modules."""

Belongs = Callable[[Path], bool]


@dataclass(frozen=True)
class Source:
    """Source files by name, relative to the folder that they are imported from, with ``/`` and without ``..``."""

    files: Mapping[str, bytes]

    @cached_property
    def digest(self) -> str:
        """SHA-256 of what the files mean; see :func:`meaning`."""
        digest = hashlib.sha256()
        for name, content in sorted(self.files.items()):
            digest.update(name.encode() + b"\0" + (meaning(content) if name.endswith(".py") else content) + b"\0")
        return digest.hexdigest()


def read_source(path: Path, distribution: str = "") -> Source:
    """A source file, and the local files that it imports, directly or indirectly.

    The rest of its package is left out, so that editing one loss leaves its neighbours' results valid. In a folder
    of sources the files beside it are its own. A folder that things are installed in also holds other
    distributions: there, a file belongs to ``distribution`` if its RECORD lists it, and where no RECORD lists
    ``path``, if it is in the same top-level package.
    """
    path = _absolute(path)
    recorded, found = recorded_hashes(distribution), _distribution(distribution)
    root = _absolute(Path(str(found.locate_file("")))) if found else path.parent
    if not _is_recorded(path, root, recorded):
        recorded, root = {}, import_root(path)
    package = path.relative_to(root).parts[0]
    installed = any(root.glob("*.dist-info"))

    def belongs(file: Path) -> bool:
        if not installed:
            return True
        same = file.is_relative_to(root) and file.relative_to(root).parts[0] == package
        return same or _is_recorded(file, root, recorded)

    files = sources(path, root, belongs)
    return Source({Path(os.path.relpath(file, root)).as_posix().replace("../", "__/"): files[file] for file in files})


def recorded_hashes(distribution: str) -> dict[str, str]:
    """The hash of each file that an installed distribution brings, by name; empty if there is no RECORD."""
    found = _distribution(distribution)
    files = (found.files if found else None) or []
    # Compiled files have no hash; metadata changes with the way of installing.
    kept = (file for file in files if not (file.suffix == ".pyc" or ".dist-info" in file.parts[0]))
    return {file.as_posix(): file.hash.value if file.hash else "" for file in kept}


def meaning(source: bytes) -> bytes:
    """What a source file does: its syntax tree in order, without positions, comments, docstrings and formatting.

    Written out here, since neither ``ast.dump`` nor ``ast.unparse`` gives the same text in all versions of Python:
    fields that are None or empty are left out, as versions differ in which they have. A file that cannot be
    parsed is taken byte by byte.
    """
    tree = _parse(source)
    if tree is None:
        return source
    try:
        return "\n".join(_tokens(tree)).encode()
    except ValueError:  # an integer of more digits than Python writes
        return source


def sources(path: Path, root: Path | None = None, belongs: Belongs = lambda file: True) -> dict[Path, bytes]:
    """A source file and the local files that it imports, directly or indirectly, with their contents.

    Imports are looked up in ``root`` and beside each file. ``belongs`` says which files count as its own.
    """
    found: dict[Path, bytes] = {}
    seen: set[Path] = set()
    waiting = [_absolute(path)]
    while waiting:
        file = waiting.pop()
        if file.resolve() in seen:
            continue
        seen.add(file.resolve())
        found[file] = file.read_bytes()
        waiting += [other for other in _own_imports(file, found[file], root) if belongs(other)]
    return found


def _tokens(tree: ast.Module) -> Iterator[str]:
    # No recursion: how deep a tree may be must not depend on who asks.
    waiting: list[object] = [tree]
    while waiting:
        item = waiting.pop()
        if isinstance(item, ast.AST):
            fields = {name: value for name, value in ast.iter_fields(item) if value is not None and value != []}
            if isinstance(item, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                documented = ast.get_docstring(item, clean=False) is not None
                fields["body"] = item.body[1:] if documented else item.body
            yield f"{type(item).__name__} {' '.join(fields)}"
            waiting += reversed(fields.values())
        elif isinstance(item, list):
            yield f"[{len(item)}]"
            waiting += reversed(item)
        else:
            yield ascii(item)  # repr of text depends on the version's Unicode tables


def _parse(source: bytes) -> ast.Module | None:
    try:
        with warnings.catch_warnings():
            # A doubtful escape is for its import to report, and no error here.
            warnings.simplefilter("ignore")
            return ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None  # its import reports the error


def _absolute(path: Path) -> Path:
    # Symbolic links stay: some installers put links to a cache in the place of files.
    return Path(os.path.abspath(path))


def _distribution(name: str) -> importlib.metadata.Distribution | None:
    try:
        return importlib.metadata.distribution(name)
    except (importlib.metadata.PackageNotFoundError, ValueError):
        return None


def _is_recorded(file: Path, site: Path, recorded: Mapping[str, str]) -> bool:
    return file.is_relative_to(site) and file.relative_to(site).as_posix() in recorded


def import_root(file: Path) -> Path:
    """The folder that ``file``'s top-level package is in; its own folder where it is in none."""
    root = file.parent
    while (root / "__init__.py").exists():
        root = root.parent
    return root


def _own_imports(file: Path, source: bytes, root: Path | None) -> list[Path]:
    """The files beside ``file``, or anywhere below its import root, that it imports."""
    tree = _parse(source) if file.suffix == ".py" else None
    if tree is None:
        return []
    folders = {root or import_root(file), file.parent}
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [_module_file(folders, alias.name) for alias in node.names if not _is_ours(alias.name)]
        elif isinstance(node, ast.ImportFrom) and (node.level or not _is_ours(node.module)):
            places = {file.parents[min(node.level, len(file.parents)) - 1]} if node.level else folders
            for alias in node.names:
                # `from package import name`: a module of the package, or else something in its __init__.py.
                inner = ".".join(filter(None, (node.module, alias.name)))
                found.append(_module_file(places, inner) or _module_file(places, node.module or ""))
    return [path for path in found if path is not None]


def _is_ours(module: str | None) -> bool:
    return (module or "").partition(".")[0] == FIRST_PARTY


def _module_file(folders: Iterable[Path], name: str) -> Path | None:
    parts = name.split(".") if name else []
    for folder in sorted(folders):
        place = folder.joinpath(*parts)
        beside = [place.with_name(f"{place.name}{suffix}") for suffix in (".py", *EXTENSION_SUFFIXES)] if parts else []
        for path in (*beside, place / "__init__.py"):
            if path.is_file():
                return path
    return None
