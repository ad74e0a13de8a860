"""ImageNet (ILSVRC 2012) as an image folder, streamed from disk: it fits neither the device nor memory.

Russakovsky 2015, arXiv:1409.0575: 1,281,167 training and 50,000 validation images of 1,000 classes.
"""

from __future__ import annotations

import hashlib
from functools import cached_property
from pathlib import Path
from typing import Annotated

from annotated_types import Ge, Gt

from kdbench.data.base import Arrays, DataFacts, FileSplit, listing
from kdbench.data.decode import bytes_of
from kdbench.data.folder import scan_folders


class ImageNet:
    """``train/<class>/*`` and ``val/<class>/*``; any large image folder of that layout will do.

    ``root``: the folder that holds these. ``test``: the test folder's name. ``size``: side of the images that
    networks see, in pixels. ``workers``: processes that decode while the networks train; 0 decodes in
    between. A corrupt image is an error when its batch is read.
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

    def facts(self) -> DataFacts:
        """Sizes, from the names of the files alone."""
        classes, train, test = self._files
        return DataFacts(
            classes=len(classes),
            image_shape=(3, self.size, self.size),
            n_train=len(train.files),
            n_test=len(test.files),
            mean=self.mean,
            std=self.std,
            listing=listing(train, test),
        )

    def load(self) -> Arrays:
        """The files of both splits. The fingerprint covers their names and sizes in bytes, not their pixels."""
        classes, train, test = self._files
        checksum = hashlib.sha256()
        for files in (train, test):
            for file in files.files:
                checksum.update(f"{file}\0{bytes_of(files.root / file)}\n".encode())
        return Arrays(train=train, test=test, fingerprint=checksum.hexdigest(), class_names=classes)
