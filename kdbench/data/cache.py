"""The cache folder: an entry is made once, by one process, and is complete or absent."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from filelock import FileLock, Timeout

from kdbench import atomic
from kdbench.errors import DataError

T = TypeVar("T")


def cache_folder() -> Path:
    """``KDBENCH_CACHE``, else ``kdbench`` in the user's cache folder (``~/.cache``).

    Raises ``DataError`` if the user has no home folder.
    """
    try:
        if own := os.environ.get("KDBENCH_CACHE"):
            return Path(own).expanduser()
        return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "kdbench"
    except RuntimeError as error:
        raise DataError("the user has no home folder for cached data; set KDBENCH_CACHE to a folder") from error


def write_checked(path: Path, content: Any) -> None:
    """Write JSON atomically, after a first line with its SHA-256. Raises ``OSError``."""
    body = json.dumps(content)
    text = f"{hashlib.sha256(body.encode()).hexdigest()}\n{body}\n"
    atomic.write(path, lambda temporary: temporary.write_text(text, encoding="ascii"))


def read_checked(path: Path) -> Any:
    """Read a file of :func:`write_checked`. Raises ``OSError``, or ``ValueError`` for a damaged file."""
    digest, _, body = path.read_text(encoding="ascii").partition("\n")
    if hashlib.sha256(body.rstrip("\n").encode()).hexdigest() != digest:
        raise ValueError(f"{path}: is damaged")
    return json.loads(body)


def exclusive(path: Path) -> FileLock:
    """Lock ``path``.lock. Waits for other processes that have the lock, with a message on standard error.

    Use it as a context manager. The system frees the lock of a process that dies.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path.with_name(path.name + ".lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        sys.stderr.write(f"{path.name} is being prepared by another process; waiting for it\n")
        lock.acquire()
    return lock


def made_once(folder: Path, make: Callable[[Path], None], read: Callable[[Path], T]) -> T:
    """Return ``read(folder)``; if the folder is missing or damaged, ``make`` creates it first.

    ``read`` raises ``OSError``, ``ValueError`` or ``KeyError`` for a folder that is missing or damaged.
    ``make`` writes into a temporary folder next to it, which is renamed when it is complete. If the process is
    killed, only the temporary folder remains, and the next call removes it.
    """
    try:
        return read(folder)
    except (OSError, ValueError, KeyError):
        pass
    try:
        with exclusive(folder):
            try:
                return read(folder)  # another process made it while this one waited
            except (OSError, ValueError, KeyError):
                unfinished = folder.with_name(folder.name + ".unfinished")
                for remains in (unfinished, folder):
                    if remains.exists():
                        shutil.rmtree(remains)
                unfinished.mkdir()
            try:
                make(unfinished)
                unfinished.replace(folder)
            finally:
                shutil.rmtree(unfinished, ignore_errors=True)
            return read(folder)
    except OSError as error:
        raise DataError(
            f"{folder}: cannot be written: {error.strerror or error}; set KDBENCH_CACHE to a folder with enough space"
        ) from error
