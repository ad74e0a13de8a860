"""Files that are written whole or not at all."""

from __future__ import annotations

import json
import os
import platform
import re
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from kdbench.errors import ResultsError

FOREIGN_SECONDS = 24 * 3600
"""A temporary file of another host is taken for a leftover after this time: its process cannot be looked up."""

_HOST = re.sub(r"[^A-Za-z0-9-]", "_", platform.node()) or "unknown"
_TEMPORARY = re.compile(r"\..+?(?:\.(?P<host>[A-Za-z0-9_-]+))?\.(?P<pid>[0-9]{1,9})\.tmp")
# A process may have the number of a dead one, in a container in particular.
_being_written: set[str] = set()


def write_atomically(path: Path, write: Callable[[Path], None]) -> None:
    """Let ``write`` fill a temporary file, then rename it to ``path``. The file's mode follows the umask.

    Raises:
        ResultsError: the file cannot be written, or the disk is full.
    """
    # Cut: the temporary name must not be too long where the name itself is not.
    temporary = path.with_name(f".{path.name[:40]}.{_HOST}.{os.getpid()}.tmp")
    _being_written.add(os.path.abspath(temporary))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.unlink(missing_ok=True)
        temporary.touch()
        mode = temporary.stat().st_mode
        write(temporary)
        with temporary.open("rb") as file:
            # Some writers make the file themselves, readable by its owner alone.
            if os.fstat(file.fileno()).st_mode != mode:
                temporary.chmod(mode)
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise ResultsError(f"{path}: cannot be written: {error.strerror or error}") from error
    except RuntimeError as error:
        # torch's own zip writer does not report the system's error.
        raise ResultsError(f"{path}: cannot be written; is the disk full? ({error})") from error
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
    if host == _HOST:
        return os.path.abspath(path) not in _being_written if pid == os.getpid() else not _is_alive(pid)
    try:
        return time.time() - path.stat().st_mtime > FOREIGN_SECONDS
    except OSError:
        return False


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:
        return True  # another user's
    return True


def _discard(path: Path) -> bool:
    try:
        path.unlink()
    except OSError:
        return False
    return True


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text atomically."""
    write_atomically(path, lambda temporary: _fill(temporary, text))


def _fill(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON object atomically."""
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def read_json(path: Path) -> dict[str, Any] | None:
    """A JSON object, or None where the file is missing, truncated or no object."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError, UnicodeDecodeError, json.JSONDecodeError):
        return None
    return content if isinstance(content, dict) else None
