"""The interface of a data set. It does not import torch, so that ``kdbench plan`` starts fast."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class DataFacts:
    """The facts of a data set that need no decoded image. ``image_shape``: (channels, height, width).

    If corrupt images are left out, the loaded splits may be smaller than ``n_train`` and ``n_test``.
    """

    classes: int
    image_shape: tuple[int, int, int]
    n_train: int
    n_test: int
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    """Channel mean and standard deviation of the training images, of values scaled to 0..1.

    None if they are measured when the images are decoded: they are then part of :class:`Arrays`.
    """
    n_validation: int = 0
    """Images taken from the training images, see :mod:`kdbench.data.splits`."""
    content: str = ""
    """A hash of the content, which changes with any image, any label or their order.

    It is part of the identity of teachers and trials, and does not depend on where the data is stored. If it is empty,
    the data set is identified by all its settings, including ``root``. :func:`kdbench.data.content.content_of` computes
    it for files.
    """


@dataclass(frozen=True)
class Split:
    """Images (N, channels, height, width) of uint8, and their classes (N,) of int64."""

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]

    def take(self, indices: NDArray[np.int64]) -> Split:
        """A copy of the images at ``indices``."""
        return Split(self.images[indices], self.labels[indices])


@dataclass(frozen=True)
class FileSplit:
    """Images that stay on disk and are decoded batch by batch, and their classes (N,) of int64.

    For data sets that do not fit into memory. ``files`` are relative to ``root``.
    """

    root: Path
    files: tuple[str, ...]
    labels: NDArray[np.int64]
    workers: int = 4
    """Number of decoding processes of a feed; 0 decodes in the training process."""

    def take(self, indices: NDArray[np.int64]) -> FileSplit:
        """The files at ``indices``."""
        return replace(self, files=tuple(self.files[i] for i in indices), labels=self.labels[indices])


@dataclass(frozen=True, eq=False)
class Arrays:
    """A loaded data set: all splits are in memory, or all are files. Compared by identity.

    ``fingerprint``: SHA-256 that changes when the data does.
    """

    train: Split | FileSplit
    test: Split | FileSplit
    fingerprint: str
    class_names: tuple[str, ...] = ()
    corrupt: int = 0
    """Number of images that could not be decoded and were left out."""
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    """Measured channel statistics, if :class:`DataFacts` has none."""
    validation: Split | FileSplit | None = None
    """Images taken from the training images, see :mod:`kdbench.data.splits`."""


class Dataset(Protocol):
    """A data set; its keyword-only constructor arguments are settings of the suite's ``[data]`` table."""

    def facts(self) -> DataFacts:
        """Sizes and content, without decoding an image. Raises ``DataError`` if the data is missing."""

    def load(self) -> Arrays:
        """Read the data set; decode it at most once and keep the arrays in the cache folder."""
