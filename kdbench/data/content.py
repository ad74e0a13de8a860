"""The content hash of a folder of files: names, classes, sizes and bytes, but no path and no date.

Reading all bytes is slow. An index in the cache folder stores each file's SHA-256 with its size, times and inode: a
file is read again only if one of these differs. This module does not import torch, so that ``kdbench plan`` is fast.
"""

from __future__ import annotations

import hashlib
import logging
import os
import stat
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import accumulate
from pathlib import Path

from kdbench.data.base import FileSplit
from kdbench.data.cache import cache_folder, read_checked, write_checked
from kdbench.data.progress import progress
from kdbench.errors import DataError

LARGE_BYTES = 4 * 2**30
"""If a data set has more bytes than this (4 GiB), only the contents of a sample of files are read."""
SAMPLE_BYTES = 256 * 2**20
"""Size of that sample, in bytes (256 MiB)."""

_SETTLED_NS = 2 * 10**9
"""If a file was modified this shortly before reading, it may change again with the same time stamp."""
_READERS = 16
"""Files read in parallel; reading mostly waits for disks and networks."""

log = logging.getLogger("kdbench")


def content_of(*splits: FileSplit) -> str:
    """SHA-256 of the names (relative to the root), classes, sizes and bytes of the files of ``splits``.

    All splits must have the same root. If the files have more than 4 GiB in total, the hash covers all sizes, but only
    the bytes of a sample of 256 MiB, chosen by the files' names: a change of other files at equal size is then not
    detected. Raises ``DataError`` for a file that cannot be read.
    """
    [root] = {split.root for split in splits}
    stats = {file: _stat(root / file) for split in splits for file in split.files}
    sizes = {file: found.st_size for file, found in stats.items()}
    read = stats.keys() if sum(sizes.values()) <= LARGE_BYTES else _sample(sizes)
    hashes = _hashes(root, {file: stats[file] for file in read})
    checksum = hashlib.sha256()
    for split in splits:
        for file, label in zip(split.files, split.labels.tolist(), strict=True):
            checksum.update(_encoded(f"{file}\0{label}\0{sizes[file]}\0{hashes.get(file, '')}\n"))
        checksum.update(b"\0")
    return checksum.hexdigest()


def _stat(path: Path) -> os.stat_result:
    try:
        found = path.stat()
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
    if not stat.S_ISREG(found.st_mode):
        raise DataError(f"{path}: is not a regular file; remove it")
    return found


def _encoded(text: str) -> bytes:
    # File names may contain bytes that are not valid UTF-8.
    return text.encode("utf-8", "surrogateescape")


def _sample(sizes: Mapping[str, int]) -> list[str]:
    """The sampled files, in the order of their names' hashes, up to the sample's size; independent of the path."""
    order = sorted(sizes, key=lambda file: hashlib.sha256(_encoded(file)).digest())
    before = accumulate((sizes[file] for file in order), initial=0)
    return [file for file, size in zip(order, before, strict=False) if size < SAMPLE_BYTES]


_State = tuple[int, int, int, int]
"""Size in bytes, modification and change time in nanoseconds, inode."""


def _state(found: os.stat_result) -> _State:
    return found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino


def _hashes(root: Path, stats: Mapping[str, os.stat_result]) -> dict[str, str]:
    """Each file's SHA-256, from the index if the file has not changed."""
    path = _index_path(root)
    index = _read_index(path)
    hashes = {}
    for file, found in stats.items():
        state, known = index.get(file, (None, ""))
        if state == _state(found):
            hashes[file] = known
    changed = [file for file in stats if file not in hashes]
    if not changed:
        return hashes
    now = time.time_ns()
    with ThreadPoolExecutor(_READERS) as readers, progress(f"reading {root}", len(changed)) as advance:
        for file, (state, digest) in zip(changed, readers.map(lambda file: _read(root / file), changed), strict=True):
            advance(1)
            hashes[file] = digest
            index.pop(file, None)
            if state[1] < now - _SETTLED_NS:
                index[file] = (state, digest)
    _write_index(path, {file: entry for file, entry in index.items() if file in stats or (root / file).exists()})
    return hashes


def _read(path: Path) -> tuple[_State, str]:
    """A file's state at opening, and the SHA-256 of its bytes."""
    try:
        with path.open("rb") as file:
            return _state(os.fstat(file.fileno())), hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error


_Index = dict[str, tuple[_State, str]]


def _index_path(root: Path) -> Path | None:
    """The path of the root's index; None if there is no cache folder."""
    try:
        return cache_folder() / "content" / f"{hashlib.sha256(os.fsencode(root.resolve())).hexdigest()[:16]}.json"
    except DataError:
        return None


def _read_index(path: Path | None) -> _Index:
    """The index; empty if it is missing or damaged."""
    try:
        entries: Mapping[str, list[int | str]] = read_checked(path) if path else {}
    except (OSError, ValueError):
        return {}
    return {file: ((*entry[:4],), entry[4]) for file, entry in entries.items()}  # type: ignore[misc]


def _write_index(path: Path | None, index: _Index) -> None:
    try:
        if path is not None:
            # Each of several concurrent processes writes a complete file; files missing in the last one are read again.
            write_checked(path, {file: [*state, found] for file, (state, found) in index.items()})
    except OSError as error:
        # No error: the next plan only takes longer, because it reads the files again.
        log.warning(
            "%s: cannot be written: %s; the next run reads all images again; set KDBENCH_CACHE to a folder with space",
            path,
            error.strerror,
        )
