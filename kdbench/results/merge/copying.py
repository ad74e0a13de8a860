"""Copies a verified trial or teacher. ``result.json`` comes last: without it, nothing counts as a result."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from functools import partial
from pathlib import Path

from kdbench.errors import ResultsError
from kdbench.results.code import FOLDER
from kdbench.results.files import write_atomically
from kdbench.results.folder import AnyFolder

_CHUNK_BYTES = 2**20


def copy_training(source: AnyFolder, target: AnyFolder, files: Mapping[str, str]) -> int:
    """Copy the files of a finished training, and its stored code; returns the bytes.

    ``files`` are those of the result, with the SHA-256 of each. Whatever else is in ``target`` is removed first.

    Raises:
        ResultsError: a file cannot be copied, or is not the one that was verified.
    """
    target.clear()
    # The description makes a folder a trial, and the result makes it a finished one.
    last = [source.description_name, "result.json"]
    names = [*sorted(name for name in files if name not in last), *last]
    size = sum(_copy(source.path / name, target.path / name, files[name]) for name in names[:-2])
    code = source.path / FOLDER
    # A link may lead out of the folder.
    for path in sorted(code.rglob("*")) if not code.is_symlink() else ():
        if path.is_file() and not path.is_symlink() and not path.name.endswith(".tmp"):
            size += _copy(path, target.path / FOLDER / path.relative_to(code))
    return size + sum(_copy(source.path / name, target.path / name, files[name]) for name in last)


def _copy(source: Path, target: Path, sha256: str = "") -> int:
    write_atomically(target, partial(_fill, source, sha256))
    return target.stat().st_size


def _fill(source: Path, sha256: str, temporary: Path) -> None:
    digest = hashlib.sha256()
    try:
        with source.open("rb") as file, temporary.open("wb") as copy:
            while chunk := file.read(_CHUNK_BYTES):
                digest.update(chunk)
                copy.write(chunk)
            status = os.fstat(file.fileno())
    except FileNotFoundError as error:
        raise ResultsError(f"{error.filename}: {_CHANGED}") from error
    if sha256 and digest.hexdigest() != sha256:
        raise ResultsError(f"{source}: {_CHANGED}")
    # With its time of the last change, the weights need not be read again by every plan and report.
    os.utime(temporary, ns=(status.st_atime_ns, status.st_mtime_ns))


_CHANGED = "changed during the merge; if a run uses the folder, wait for its end, then merge again"
