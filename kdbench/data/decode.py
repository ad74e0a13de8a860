"""Decodes image files to memory-mapped uint8 arrays in the cache folder: once, in parallel, for all runs.

The cache's key is a hash of the files' content (:mod:`kdbench.data.content`) and of the settings. A data set that
was moved is found in the cache, and one that changed is decoded again. Workers write their rows directly to the
file, so that each needs memory for a chunk of images only. This module does not import torch, which would cost each
worker seconds and some hundred megabytes.
"""

from __future__ import annotations

import hashlib
import io
import logging
import math
import multiprocessing
import os
import signal
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from kdbench.data.base import Arrays, FileSplit, Split
from kdbench.data.cache import cache_folder, made_once, read_checked, write_checked
from kdbench.data.content import content_of
from kdbench.data.progress import progress
from kdbench.errors import DataError

OnCorrupt = Literal["error", "skip"]

_FORMAT = 2
"""Part of the key; increase it when decoding changes the bytes that it writes."""
_CHUNK_BYTES = 8 * 2**20
_CHUNK_FILES = 512
_NAMED = 20
"""Maximum number of corrupt images listed in an error."""

log = logging.getLogger("kdbench")


class CorruptImage(DataError):  # noqa: N818 - not an error if corrupt images are skipped
    """An image that cannot be decoded."""


def read_image(path: Path, reduced_to: int | None = None) -> Image.Image:
    """Read an image as RGB. ``reduced_to``: a sufficient side length in pixels, so that large JPEGs decode faster.

    Raises ``CorruptImage`` if it cannot be decoded or has more pixels than Pillow's limit (89 million), and
    ``DataError`` if the file cannot be read.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
    try:
        with _open_image(io.BytesIO(content)) as image:
            if reduced_to is not None:
                image.draft("RGB", (reduced_to, reduced_to))
            return image.convert("RGB")
    except UnidentifiedImageError as error:
        raise CorruptImage(
            f"{path}: cannot be decoded: {'it is not an image' if content else 'it is empty'}"
        ) from error
    except Exception as error:  # decoders raise errors of any type
        raise CorruptImage(f"{path}: cannot be decoded: {error}") from error


def _open_image(file: Path | io.BytesIO) -> Image.Image:
    """Read an image's header. For too many pixels, raise an error (Pillow warns only) before decoding."""
    with warnings.catch_warnings(action="error", category=Image.DecompressionBombWarning):
        return Image.open(file)


def image_size(files: FileSplit) -> tuple[int, int]:
    """(height, width) in pixels of the first readable image, from its header."""
    for name in files.files:
        try:
            with _open_image(files.root / name) as image:
                return image.height, image.width
        except Exception:  # noqa: BLE001 - as in read_image; the image is named when it is decoded
            continue
    raise DataError(f"{files.root}: none of its {len(files.files)} images can be decoded")


def decoded(
    name: str,
    train: FileSplit,
    test: FileSplit,
    *,
    content: str,
    class_names: tuple[str, ...],
    size: int | None = None,
    on_corrupt: OnCorrupt = "error",
    workers: int | None = None,
) -> Arrays:
    """The decoded images of a data set, from the cache if it contains them.

    ``content``: the hash of the files (:func:`~kdbench.data.content.content_of`). ``size``: resize to ``size`` x
    ``size`` pixels; without it all images must have the size of the first. A corrupt image raises ``DataError`` with
    the file's name or, with ``on_corrupt`` ``skip``, is left out and counted. ``workers``: number of decoding
    processes, by default one for each core; 0 decodes in this process.
    """
    height, width = (size, size) if size else image_size(train)
    splits = {"train": train, "test": test}
    key = hashlib.sha256(repr((_FORMAT, height, width, size, on_corrupt, content)).encode()).hexdigest()

    def make(folder: Path) -> None:
        total_files = sum(len(files.files) for files in splits.values())
        with _executor(workers) as executor, progress(f"decoding {name}", total_files) as advance:
            outcomes = {
                split: _decode_split(
                    files, folder, split, _Target(height, width, size is not None), on_corrupt, executor, advance
                )
                for split, files in splits.items()
            }
        if content_of(train, test) != content:
            raise DataError(f"{train.root}: files changed while they were decoded; run again")
        if on_corrupt == "error":
            _refuse([message for outcome in outcomes.values() for message in outcome.corrupt.values()])
        total = outcomes["train"]
        mean, std = total.statistics()
        corrupt = [file for outcome in outcomes.values() for file in outcome.corrupt]
        facts = {
            "fingerprint": _fingerprint(folder, splits),
            "mean": mean,
            "std": std,
            "corrupt": corrupt,
        }
        write_checked(folder / "facts.json", facts)
        if corrupt:
            shown = ", ".join(corrupt[:3]) + (" .." if len(corrupt) > 3 else "")
            log.warning("%s: left out %d corrupt images: %s", name, len(corrupt), shown)

    def read(folder: Path) -> Arrays:
        facts = read_checked(folder / "facts.json")
        if _fingerprint(folder, splits) != facts["fingerprint"]:
            raise ValueError(f"{folder}: is damaged")
        return Arrays(
            train=_open(folder, "train"),
            test=_open(folder, "test"),
            fingerprint=facts["fingerprint"],
            class_names=class_names,
            corrupt=len(facts["corrupt"]),
            mean=tuple(facts["mean"]),
            std=tuple(facts["std"]),
        )

    return made_once(cache_folder() / "images" / f"{name}-{key[:16]}", make, read)


def _refuse(messages: Sequence[str]) -> None:
    """Raise ``DataError`` if there are corrupt images, with the first of their names."""
    if not messages:
        return
    lines = list(messages[:_NAMED])
    if len(messages) > 1:
        more = f", {len(messages) - _NAMED} of them not named here" if len(messages) > _NAMED else ""
        lines.append(f"{len(messages)} images cannot be decoded{more}")
    raise DataError("\n".join(lines) + '; data.on_corrupt = "skip" leaves such images out')


@dataclass(frozen=True)
class _Target:
    """The size of all images: ``height`` x ``width``, by resizing or as stored."""

    height: int
    width: int
    resize: bool

    def array(self, path: Path) -> NDArray[np.uint8]:
        """The image (3, height, width)."""
        image = read_image(path, self.width if self.resize else None)
        if self.resize:
            image = image.resize((self.width, self.height), Image.Resampling.BILINEAR)
        elif (image.height, image.width) != (self.height, self.width):
            raise DataError(
                f"{path}: is {image.width}x{image.height} pixels, but the first image is "
                f"{self.width}x{self.height}; set data.size to resize all images"
            )
        return np.asarray(image).transpose(2, 0, 1)


@dataclass
class _Decoded:
    """The result of decoding some files: the corrupt ones, and sums over channels of values and squares."""

    pixels: int
    sums: NDArray[np.int64]
    squares: NDArray[np.int64]
    corrupt: dict[str, str]
    """Error message by file."""

    @classmethod
    def nothing(cls) -> _Decoded:
        return cls(0, np.zeros(3, np.int64), np.zeros(3, np.int64), {})

    def add(self, other: _Decoded) -> None:
        self.pixels += other.pixels
        self.sums += other.sums
        self.squares += other.squares
        self.corrupt |= other.corrupt

    def statistics(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Channel mean and standard deviation, of values scaled to 0..1. Sums of integers are exact."""
        if not self.pixels:
            raise DataError("every training image is corrupt")
        mean = self.sums / self.pixels
        std = np.sqrt(np.maximum(self.squares / self.pixels - mean**2, 0))
        return tuple((mean / 255).tolist()), tuple((std / 255).tolist())


def _decode_split(
    files: FileSplit,
    folder: Path,
    split: str,
    target: _Target,
    on_corrupt: OnCorrupt,
    executor: Executor | None,
    advance: Callable[[int], None],
) -> _Decoded:
    """Write ``split``.npy and ``split``-labels.npy of the files that can be decoded."""
    path = folder / f"{split}.npy"
    shape = (len(files.files), 3, target.height, target.width)
    array = np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=shape)
    offset = array.offset
    del array
    image_bytes = math.prod(shape[1:])
    length = max(1, min(_CHUNK_FILES, _CHUNK_BYTES // image_bytes))
    chunks = [
        _Chunk(files.root, files.files[i : i + length], path, offset + i * image_bytes, target)
        for i in range(0, shape[0], length)
    ]
    outcome = _Decoded.nothing()
    parts = (map if executor is None else executor.map)(_decode_chunk, chunks)
    for chunk, part in zip(chunks, parts, strict=True):
        outcome.add(part)
        advance(len(chunk.files))
    if outcome.corrupt and on_corrupt == "error":
        return outcome  # the caller raises one error for all
    kept = np.array([file not in outcome.corrupt for file in files.files])
    if not kept.all():
        _keep_rows(path, np.flatnonzero(kept))
    np.save(folder / f"{split}-labels.npy", files.labels[kept])
    return outcome


@dataclass(frozen=True)
class _Chunk:
    """Files that one task decodes, and the position of their first row in the array file."""

    root: Path
    files: tuple[str, ...]
    array: Path
    offset: int
    target: _Target


def _decode_chunk(chunk: _Chunk) -> _Decoded:
    """Decode some files into their rows of the array file. Runs in a worker process."""
    rows = np.zeros((len(chunk.files), 3, chunk.target.height, chunk.target.width), np.uint8)
    outcome = _Decoded.nothing()
    for row, file in zip(rows, chunk.files, strict=True):
        try:
            row[:] = chunk.target.array(chunk.root / file)
        except CorruptImage as error:
            outcome.corrupt[file] = str(error)
    with chunk.array.open("r+b") as out:
        out.seek(chunk.offset)
        out.write(rows.tobytes())
    # The rows of corrupt images are zeros and are not counted.
    outcome.pixels = (len(rows) - len(outcome.corrupt)) * rows[0, 0].size
    levels = np.arange(256)
    for channel in range(3):
        counts = np.bincount(rows[:, channel].ravel(), minlength=256)
        outcome.sums[channel] = counts @ levels
        outcome.squares[channel] = counts @ levels**2
    return outcome


def _keep_rows(path: Path, rows: NDArray[np.int64]) -> None:
    """Rewrite an array file with some of its rows."""
    everything = np.load(path, mmap_mode="r")
    smaller = path.with_suffix(".kept")
    header = {"descr": "|u1", "fortran_order": False, "shape": (len(rows), *everything.shape[1:])}
    # Written, not memory-mapped: a full disk then raises an error instead of killing the process.
    with smaller.open("wb") as out:
        np.lib.format.write_array_header_1_0(out, header)
        for start in range(0, len(rows), _CHUNK_FILES):
            out.write(everything[rows[start : start + _CHUNK_FILES]].tobytes())
    smaller.replace(path)


def _open(folder: Path, split: str) -> Split:
    # Copy-on-write: torch requires writable memory, and pages stay shared until they are written.
    images = np.load(folder / f"{split}.npy", mmap_mode="c")
    return Split(images, np.load(folder / f"{split}-labels.npy"))


def _fingerprint(folder: Path, splits: dict[str, FileSplit]) -> str:
    """SHA-256 of the decoded data, which does not depend on the location of the files."""
    checksum = hashlib.sha256()
    for split in splits:
        for suffix in ("", "-labels"):
            with (folder / f"{split}{suffix}.npy").open("rb") as file:
                checksum.update(hashlib.file_digest(file, "sha256").digest())
    return checksum.hexdigest()


def _start_worker() -> None:
    """Ignore Ctrl-C and SIGTERM in a worker; it ends with the main process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_after, args=(parent,), daemon=True).start()


def _end_after(process: BaseProcess) -> None:
    process.join()
    os._exit(1)


@contextmanager
def _executor(workers: int | None) -> Iterator[Executor | None]:
    """Worker processes; None if this process does the work."""
    count = (os.cpu_count() or 1) if workers is None else workers
    if count == 0:
        yield None
        return
    # Not forked: workers must not inherit the threads, locks and memory of this process.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(count, mp_context=context, initializer=_start_worker) as executor:
        try:
            yield executor
        except BrokenProcessPool as error:
            raise DataError(
                "the decoding processes ended unexpectedly (out of memory, or a script that starts kdbench "
                "outside of `if __name__ == '__main__':`); data.workers = 0 decodes in this process"
            ) from error
        except BaseException:
            executor.shutdown(cancel_futures=True)
            raise
