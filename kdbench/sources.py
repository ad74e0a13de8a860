"""The files that a source imports from beside it, and a fingerprint of them all; nothing is imported."""

from __future__ import annotations

import ast
import hashlib
import os
from collections.abc import Iterable
from pathlib import Path


def hash_sources(path: Path) -> str:
    """SHA-256 over a source file and the files of its own package that it imports, directly or not.

    The rest of the package is left out, so that editing one loss leaves its neighbours' results valid.
    """
    root = path.resolve().parent
    digest = hashlib.sha256()
    for file, source in sorted(sources(path).items()):
        digest.update(os.path.relpath(file, root).encode() + b"\0" + source + b"\0")
    return digest.hexdigest()


def sources(path: Path) -> dict[Path, bytes]:
    """A source file and the files of its own that it imports, directly or not, with their contents."""
    seen: dict[Path, bytes] = {}
    waiting = [path.resolve()]
    while waiting:
        file = waiting.pop()
        if file in seen:
            continue
        seen[file] = file.read_bytes()
        waiting += _own_imports(file, seen[file])
    return seen


def _own_imports(file: Path, source: bytes) -> list[Path]:
    """The files beside ``file``, or anywhere in its package, that it imports."""
    package_root = file.parent
    while (package_root / "__init__.py").exists():
        package_root = package_root.parent
    folders = {package_root, file.parent}
    try:
        tree = ast.parse(source)
    except SyntaxError:
        return []  # its import will say so
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [_module_file(folders, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                folder = file.parents[node.level - 1]
                base = ".".join((*folder.relative_to(package_root).parts, *filter(None, [node.module])))
            for alias in node.names:
                # `from package import name`: a module of the package, or else something in its __init__.py.
                found.append(_module_file(folders, f"{base}.{alias.name}") or _module_file(folders, base))
    return [path for path in found if path is not None]


def _module_file(folders: Iterable[Path], name: str) -> Path | None:
    for folder in folders:
        place = folder.joinpath(*name.split("."))
        for path in (place.with_name(f"{place.name}.py"), place / "__init__.py"):
            if path.is_file():
                return path.resolve()
    return None
