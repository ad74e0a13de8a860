"""Image folders: ``train/<class>/*`` and ``test/<class>/*`` (or ``val/<class>/*``), decoded once."""

from __future__ import annotations

import os
from functools import cached_property
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from annotated_types import Ge, Gt

from kdbench.data.base import Arrays, DataFacts, FileSplit
from kdbench.data.content import content_of
from kdbench.data.decode import decoded, image_size
from kdbench.errors import DataError

EXTENSIONS = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".pgm", ".ppm", ".tif", ".tiff", ".webp")


class ImageFolder:
    """A data set of image files with one folder per class.

    ``root``: the folder that contains ``train`` and the test folder. ``test``: the test folder's name, by
    default ``test`` or, if it does not exist, ``val``. ``size``: resize all images to ``size`` x ``size`` pixels;
    without it they must all have the same size. ``mean``, ``std``: channel statistics of values in 0..1, by default
    measured on the training images. ``on_corrupt``: ``skip`` leaves out images that cannot be decoded.
    ``workers``: decoding processes, by default one for each core.

    It is identified by the files' names, sizes and bytes, which are read once (:mod:`kdbench.data.content`). Above
    4 GiB, only the bytes of a sample of 256 MiB are read: a change of other files at equal size is not detected.
    """

    def __init__(
        self,
        *,
        root: str,
        test: str | None = None,
        size: Annotated[int, Gt(0)] | None = None,
        mean: tuple[float, float, float] | None = None,
        std: tuple[float, float, float] | None = None,
        on_corrupt: Literal["error", "skip"] = "error",
        workers: Annotated[int, Ge(0)] | None = None,
    ) -> None:
        self.root = Path(root).expanduser()
        self.test = test
        self.size = size
        self.mean = mean
        self.std = std
        self.on_corrupt = on_corrupt
        self.workers = workers

    @cached_property
    def _files(self) -> tuple[tuple[str, ...], FileSplit, FileSplit]:
        return scan_folders(self.root, self.test)

    @cached_property
    def _content(self) -> str:
        return content_of(*self._files[1:])

    def facts(self) -> DataFacts:
        """Sizes, from the names of the files and the header of one image, and their content."""
        classes, train, test = self._files
        height, width = (self.size, self.size) if self.size else image_size(train)
        return DataFacts(
            classes=len(classes),
            image_shape=(3, height, width),
            n_train=len(train.files),
            n_test=len(test.files),
            mean=self.mean,
            std=self.std,
            content=self._content,
        )

    def load(self) -> Arrays:
        """Decode the images, or map them from the cache."""
        classes, train, test = self._files
        return decoded(
            "image_folder",
            train,
            test,
            content=self._content,
            class_names=classes,
            size=self.size,
            on_corrupt=self.on_corrupt,
            workers=self.workers,
        )


def existing_root(root: Path, holds: str) -> Path:
    """Return ``root``; raise ``DataError`` if it is not a folder. ``holds``: its expected content, for the message."""
    if not root.is_dir():
        raise DataError(f"data.root: {root}: no such folder; set it to the folder that contains {holds}")
    return root


def scan_folders(root: Path, test: str | None, workers: int = 0) -> tuple[tuple[str, ...], FileSplit, FileSplit]:
    """Class names in order, training files and test files. Reads only names.

    Raises ``DataError`` if a folder is missing or empty, or if the classes of the splits differ.
    """
    existing_root(root, "train/ and test/ (or val/)")
    classes = _class_names(root, "train")
    if test is None:
        test = next((name for name in ("test", "val") if (root / name).is_dir()), None)
        if test is None:
            raise DataError(f"{root}: has neither test/ nor val/; set data.test to the test folder's name")
    found = _class_names(root, test)
    for name in classes:
        if name not in found:
            raise DataError(f"{root / test}: has no folder for class '{name}' of {root / 'train'}")
    for name in found:
        if name not in classes:
            raise DataError(f"{root / test / name}: is not a class of {root / 'train'}")
    train_files = files_of(root, [f"train/{name}" for name in classes], workers)
    return classes, train_files, files_of(root, [f"{test}/{name}" for name in classes], workers)


def files_of(root: Path, folders: list[str], workers: int = 0) -> FileSplit:
    """The image files below each of ``folders`` (relative to ``root``), labelled by the folder's position."""
    names: list[str] = []
    counts: list[int] = []
    for folder in folders:
        try:
            inside = sorted(_image_files(root / folder, f"{folder}/"))
        except OSError as error:
            raise DataError(f"{error.filename}: cannot be read: {error.strerror}") from error
        if not inside:
            raise DataError(f"{root / folder}: contains no images ({', '.join(EXTENSIONS)})")
        names += inside
        counts.append(len(inside))
    return FileSplit(root, tuple(names), np.repeat(np.arange(len(folders), dtype=np.int64), counts), workers)


def _image_files(folder: Path, prefix: str) -> list[str]:
    """Relative names of the images in a folder and its subfolders; hidden ones are left out."""
    names = []
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                names += _image_files(Path(entry.path), f"{prefix}{entry.name}/")
            elif entry.name.lower().endswith(EXTENSIONS):
                names.append(prefix + entry.name)
    return names


def _class_names(root: Path, split: str) -> tuple[str, ...]:
    folder = root / split
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; data.root must contain train/<class>/ and test/<class>/ (or val/)")
    names = sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and entry.name[0] != ".")
    if not names:
        raise DataError(f"{folder}: contains no class folders; put images into {folder}/<class>/")
    return tuple(names)
