"""Tiny ImageNet in its usual layout: 200 classes, 500 training and 50 validation images each.

Le and Yang 2015, http://cs231n.stanford.edu/reports/2015/pdfs/yle_project.pdf. The published test split
has no labels; as usual in the field, the validation split is used for testing.
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from annotated_types import Ge, Gt

from kdbench.data.base import Arrays, DataFacts, FileSplit
from kdbench.data.content import content_of
from kdbench.data.decode import decoded, image_size
from kdbench.data.folder import existing_root, files_of
from kdbench.errors import DataError


class TinyImageNet:
    """``wnids.txt``, ``train/<wnid>/images/*.JPEG``, ``val/images`` and ``val/val_annotations.txt``.

    ``root``: the folder that contains these. ``size``: resize all images to ``size`` x ``size`` pixels; without it
    they must all have the same size (64 pixels as published). ``on_corrupt``: ``skip`` leaves out images that
    cannot be decoded. ``workers``: decoding processes, by default one for each core.
    """

    def __init__(
        self,
        *,
        root: str,
        size: Annotated[int, Gt(0)] | None = None,
        on_corrupt: Literal["error", "skip"] = "error",
        workers: Annotated[int, Ge(0)] | None = None,
    ) -> None:
        self.root = Path(root).expanduser()
        self.size = size
        self.on_corrupt = on_corrupt
        self.workers = workers

    @cached_property
    def _files(self) -> tuple[list[str], FileSplit, FileSplit]:
        existing_root(self.root, "wnids.txt, train/ and val/")
        classes = _lines(self.root / "wnids.txt")
        for wnid in classes:
            if not (self.root / "train" / wnid / "images").is_dir():
                raise DataError(f"{self.root / 'train' / wnid / 'images'}: no such folder, but wnids.txt lists {wnid}")
        train = files_of(self.root, [f"train/{wnid}/images" for wnid in classes])
        return classes, train, self._validation_files(classes)

    def _validation_files(self, classes: list[str]) -> FileSplit:
        annotations = self.root / "val" / "val_annotations.txt"
        numbers = {wnid: number for number, wnid in enumerate(classes)}
        labels: dict[str, int] = {}
        for number, line in enumerate(_lines(annotations), start=1):
            name, _, rest = line.partition("\t")
            wnid = rest.partition("\t")[0]
            if wnid not in numbers:
                raise DataError(f"{annotations}:{number}: '{wnid}' is not in wnids.txt")
            labels[f"val/images/{name}"] = numbers[wnid]
        names = sorted(labels)
        return FileSplit(self.root, tuple(names), np.array([labels[name] for name in names], np.int64))

    @cached_property
    def _content(self) -> str:
        return content_of(*self._files[1:])

    def facts(self) -> DataFacts:
        """Sizes, from the lists and names of files and the header of one image, and their content."""
        classes, train, test = self._files
        height, width = (self.size, self.size) if self.size else image_size(train)
        return DataFacts(
            classes=len(classes),
            image_shape=(3, height, width),
            n_train=len(train.files),
            n_test=len(test.files),
            content=self._content,
        )

    def load(self) -> Arrays:
        """Decode the images, or map them from the cache."""
        classes, train, test = self._files
        return decoded(
            "tiny_imagenet",
            train,
            test,
            content=self._content,
            class_names=self._words(classes),
            size=self.size,
            on_corrupt=self.on_corrupt,
            workers=self.workers,
        )

    def _words(self, classes: list[str]) -> tuple[str, ...]:
        """The classes' names in English, if ``words.txt`` exists."""
        path = self.root / "words.txt"
        words = dict(line.split("\t", 1) for line in _lines(path)) if path.is_file() else {}
        return tuple(words.get(wnid, wnid) for wnid in classes)


def _lines(path: Path) -> list[str]:
    try:
        lines = [line for line in path.read_text().splitlines() if line.strip()]
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}; data.root must have Tiny ImageNet's usual layout") from error
    if not lines:
        raise DataError(f"{path}: is empty")
    return lines
