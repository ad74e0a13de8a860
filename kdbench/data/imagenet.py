"""ImageNet (ILSVRC 2012) as an image folder, streamed from disk, because it does not fit into memory.

Russakovsky 2015, arXiv:1409.0575: 1,281,167 training and 50,000 validation images of 1,000 classes.
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Annotated

from annotated_types import Ge, Gt

from kdbench.data.base import Arrays, DataFacts, FileSplit
from kdbench.data.content import content_of
from kdbench.data.folder import scan_folders


class ImageNet:
    """``train/<class>/*`` and ``val/<class>/*``; works for any large image folder with this layout.

    ``root``: the folder that contains these. ``test``: the test folder's name. ``size``: side of the networks'
    input images, in pixels. ``workers``: processes that decode in parallel with training; 0 decodes in the training
    process. A corrupt image is an error when its batch is read.

    It is identified by the files' names, sizes and bytes. Above 4 GiB, only the bytes of a sample of 256 MiB are read:
    a change of other files at equal size is not detected.
    """

    mean = (0.485, 0.456, 0.406)
    std = (0.229, 0.224, 0.225)

    def __init__(
        self,
        *,
        root: str,
        test: str = "val",
        size: Annotated[int, Gt(0)] = 224,
        workers: Annotated[int, Ge(0)] = 8,
    ) -> None:
        self.root = Path(root).expanduser()
        self.test = test
        self.size = size
        self.workers = workers

    @cached_property
    def _files(self) -> tuple[tuple[str, ...], FileSplit, FileSplit]:
        return scan_folders(self.root, self.test, workers=self.workers)

    @cached_property
    def _content(self) -> str:
        return content_of(*self._files[1:])

    def facts(self) -> DataFacts:
        """Sizes, from the file names; no image is decoded."""
        classes, train, test = self._files
        return DataFacts(
            classes=len(classes),
            image_shape=(3, self.size, self.size),
            n_train=len(train.files),
            n_test=len(test.files),
            mean=self.mean,
            std=self.std,
            content=self._content,
        )

    def load(self) -> Arrays:
        """The files of both splits; they are decoded when they are used."""
        classes, train, test = self._files
        return Arrays(train=train, test=test, fingerprint=self._content, class_names=classes)
