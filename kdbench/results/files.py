"""The files of results: written whole or not at all, and read with what is wrong with them."""

from __future__ import annotations

import errno
import hashlib
import json
import shutil
import stat
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from kdbench import atomic
from kdbench.errors import ResultsError

LARGEST_RECORD_BYTES = 256 * 2**20
CHECKSUM = "checksum"


Check = Callable[[], None] | None
"""Called right before a file is replaced; an error that it raises keeps the old file."""


def write_atomically(path: Path, write: Callable[[Path], None], check: Check = None) -> None:
    """:func:`kdbench.atomic.write`, with errors that name the file.

    Raises:
        ResultsError: the file cannot be written, or the disk is full.
    """
    try:
        atomic.write(path, write, check)
    except OSError as error:
        raise ResultsError(f"{path}: cannot be written: {error.strerror or error}") from error
    except RuntimeError as error:
        # torch's own zip writer does not report the system's error.
        raise ResultsError(f"{path}: cannot be written; is the disk full? ({error})") from error


def write_text(path: Path, text: str, check: Check = None) -> None:
    """Write UTF-8 text atomically."""
    write_atomically(path, lambda temporary: _fill(temporary, text), check)


def _fill(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


def write_json(path: Path, content: Mapping[str, Any], check: Check = None) -> None:
    """Write a JSON object atomically, with a checksum of its content as its last entry."""
    # As it will be read: tuples become lists, and keys text.
    content = json.loads(json.dumps(content))
    sealed = {**content, CHECKSUM: checksum(content)}
    text = json.dumps(sealed, indent=2, ensure_ascii=False)
    if any("\ud800" <= letter <= "\udfff" for letter in text):
        text = json.dumps(sealed, indent=2)  # bytes of a file's name that are no UTF-8
    write_text(path, text + "\n", check)


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
