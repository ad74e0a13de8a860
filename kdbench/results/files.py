"""Files that are written whole or not at all."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import platform
import re
import shutil
import stat
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from kdbench.errors import ResultsError

FOREIGN_SECONDS = 24 * 3600
"""A temporary file of another host counts as a leftover after this time: its process cannot be checked."""

LARGEST_RECORD_BYTES = 256 * 2**20
CHECKSUM = "checksum"

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
    """Write a JSON object atomically, with a checksum of its content as its last entry."""
    # As it will be read: tuples become lists, and keys text.
    content = json.loads(json.dumps(content))
    sealed = {**content, CHECKSUM: checksum(content)}
    text = json.dumps(sealed, indent=2, ensure_ascii=False)
    if any("\ud800" <= letter <= "\udfff" for letter in text):
        text = json.dumps(sealed, indent=2)  # bytes of a file's name that are no UTF-8
    write_text(path, text + "\n")


def checksum(content: Mapping[str, Any]) -> str:
    """SHA-256 of a JSON object's canonical form, without its checksum."""
    kept = {key: value for key, value in content.items() if key != CHECKSUM}
    return hashlib.sha256(json.dumps(kept, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def read_json(path: Path) -> dict[str, Any] | None:
    """What :func:`write_json` wrote, without the checksum; None where the file is missing or damaged."""
    return inspect_json(path)[0]


def inspect_json(path: Path) -> tuple[dict[str, Any] | None, str]:
    """What :func:`write_json` wrote, and what is wrong with the file: empty if nothing is, or if it is missing.

    Raises:
        ResultsError: the file cannot be read, which says nothing about its content.
    """
    content, problem = parse_json(path)
    if content is None:
        return None, problem
    if content.get(CHECKSUM) != checksum(content):
        return None, f"{path.name} does not match its checksum"
    del content[CHECKSUM]
    return content, ""


def parse_json(path: Path) -> tuple[dict[str, Any] | None, str]:
    """The JSON object in a file, whatever its checksum, and what is wrong; see :func:`inspect_json`."""
    content, problem = read_bytes(path)
    if content is None:
        return None, problem
    try:
        parsed = json.loads(content)
    except (ValueError, RecursionError):
        parsed = None
    return (parsed, "") if isinstance(parsed, dict) else (None, f"{path.name} is truncated or not a JSON object")


def read_bytes(path: Path) -> tuple[bytes | None, str]:
    """A record's bytes, and what is wrong with the file; see :func:`inspect_json`."""
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            return None, f"{path.name} is not a regular file"
        if status.st_size > LARGEST_RECORD_BYTES:
            return None, f"{path.name} is larger than any record ({status.st_size / 2**20:.0f} MiB)"
        return path.read_bytes(), ""
    except OSError as error:
        return None, _meaning(path, error)


def _meaning(path: Path, error: OSError) -> str:
    """What is wrong with a file that cannot be opened; empty where it is missing."""
    if error.errno in {errno.ENOENT, errno.ENOTDIR}:
        return ""
    if error.errno in {errno.ELOOP, errno.EISDIR}:
        return f"{path.name} is not a regular file"
    raise ResultsError(f"{path}: cannot be read: {error.strerror or error}; it may be valid and is not changed")


def stamp(path: Path) -> dict[str, Any]:
    """What :func:`mismatch` compares a file with: SHA-256, size in bytes, time of the last change in ns."""
    try:
        status = path.stat()
        return {"sha256": _sha256(path), "size": status.st_size, "mtime_ns": status.st_mtime_ns}
    except OSError as error:
        raise ResultsError(f"{path}: cannot be read: {error.strerror or error}") from error


def mismatch(path: Path, known: Mapping[str, Any], *, trust_time: bool) -> str:
    """What is wrong with a file whose stamp was ``known``; empty if nothing is.

    With ``trust_time`` a file of the same size and time of the last change is taken to be unchanged.
    """
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            return f"{path.name} is not a regular file"
        if status.st_size == known["size"]:
            if trust_time and status.st_mtime_ns == known["mtime_ns"]:
                return ""
            if _sha256(path) == known["sha256"]:
                return ""
    except OSError as error:
        return _meaning(path, error) or f"{path.name} is missing"
    return f"{path.name} does not match its checksum"


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def remove(path: Path) -> None:
    """Remove whatever has this name: a file, a folder, a link.

    Raises:
        ResultsError: it cannot be removed.
    """
    try:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    except NotADirectoryError:
        pass
    except OSError as error:
        raise ResultsError(f"{path}: cannot be removed: {error.strerror or error}") from error
