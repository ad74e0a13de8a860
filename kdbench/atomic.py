"""Files that are written whole or not at all, and what killed processes left of them."""

from __future__ import annotations

import hashlib
import os
import platform
import re
import time
from collections.abc import Callable
from pathlib import Path

from kdbench.machine import is_alive, process_space

FOREIGN_SECONDS = 24 * 3600
"""A temporary file of another host counts as a leftover after this time: its process cannot be checked."""

_NAME = re.sub(r"[^A-Za-z0-9-]", "_", platform.node())[:60] or "unknown"
HOST = f"{_NAME}-{hashlib.sha256(process_space().encode()).hexdigest()[:6]}"
"""Of this process, in the names of temporary files."""
_TEMPORARY = re.compile(r"\..+?(?:\.(?P<host>[A-Za-z0-9_-]+))?\.(?P<pid>[0-9]{1,9})\.tmp")
# A process may have the number of a dead one, in a container in particular.
_being_written: set[str] = set()


def write(path: Path, fill: Callable[[Path], object], check: Callable[[], None] | None = None) -> None:
    """Let ``fill`` write a temporary file, then rename it to ``path``. The file's mode follows the umask.

    ``check`` is called right before the renaming; an error that it raises keeps the old file. Raises ``OSError``, and
    what ``fill`` and ``check`` raise.
    """
    # Cut: the temporary name must not be too long where the name itself is not.
    temporary = path.with_name(f".{path.name[:40]}.{HOST}.{os.getpid()}.tmp")
    _being_written.add(os.path.abspath(temporary))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.unlink(missing_ok=True)
        temporary.touch()
        mode = temporary.stat().st_mode
        fill(temporary)
        with temporary.open("rb") as file:
            # Some writers make the file themselves, readable by its owner alone.
            if os.fstat(file.fileno()).st_mode != mode:
                temporary.chmod(mode)
            os.fsync(file.fileno())
        if check is not None:
            check()
        temporary.replace(path)
    finally:
        _discard(temporary)
        _being_written.discard(os.path.abspath(temporary))


def remove_leftovers(folder: Path) -> list[Path]:
    """Remove the temporary files in ``folder`` whose process is dead, and return their paths.

    A file of this host is removed if its process does not exist any more, one of another host (or without one)
    if it has not changed for :data:`FOREIGN_SECONDS`. Folders below ``folder`` are not searched.
    """
    removed = []
    try:
        found = [path for path in folder.iterdir() if path.name.startswith(".") and path.name.endswith(".tmp")]
    except OSError:
        return []
    for path in found:
        match = _TEMPORARY.fullmatch(path.name)
        if match and _is_leftover(path, match["host"], int(match["pid"])) and _discard(path):
            removed.append(path)
    return removed


def _is_leftover(path: Path, host: str | None, pid: int) -> bool:
    if host == HOST:
        return os.path.abspath(path) not in _being_written if pid == os.getpid() else not is_alive(pid)
    try:
        return time.time() - path.stat().st_mtime > FOREIGN_SECONDS
    except OSError:
        return False


def _discard(path: Path) -> bool:
    try:
        path.unlink()
    except OSError:
        return False
    return True
