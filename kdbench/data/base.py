"""The contract of a data set. No torch: ``kdbench plan`` reads facts through it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class DataFacts:
    """What is known of a data set without decoding an image. ``image_shape``: (channels, height, width).

    Where corrupt images are left out, the loaded splits may be smaller than ``n_train`` and ``n_test``.
    """

    classes: int
    image_shape: tuple[int, int, int]
    n_train: int
    n_test: int
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    """Channel mean and standard deviation of the training images, of values scaled to 0..1.

    None where they are measured when the images are decoded: they are then part of :class:`Arrays`.
    """
    n_validation: int = 0
    """Images cut from the training images, see :mod:`kdbench.data.splits`."""
    content: str = ""
    """What the data set holds, as a hash that changes when an image, a label or their order does.

    It identifies teachers and trials, and is the same wherever the data is stored. Where a data set leaves it empty,
    all its settings identify it, its ``root`` included. :func:`kdbench.data.content.content_of` computes it for files.
    """


@dataclass(frozen=True)
class Split:
    """Images (N, channels, height, width) of uint8, and their classes (N,) of int64."""

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]

    def take(self, indices: NDArray[np.int64]) -> Split:
        """The images at ``indices``, copied."""
        return Split(self.images[indices], self.labels[indices])


@dataclass(frozen=True)
class FileSplit:
    """Images left on disk, decoded batch by batch, and their classes (N,) of int64.

    For data sets that fit neither the device nor memory. ``files`` are relative to ``root``.
    """

    root: Path
    files: tuple[str, ...]
    labels: NDArray[np.int64]
    workers: int = 4
    """Processes that decode for a feed; 0 decodes in the training process."""

    def take(self, indices: NDArray[np.int64]) -> FileSplit:
        """The files at ``indices``."""
        return replace(self, files=tuple(self.files[i] for i in indices), labels=self.labels[indices])


@dataclass(frozen=True, eq=False)
class Arrays:
    """A loaded data set: all its splits are in memory, or all are files. Compared by identity.

    ``fingerprint``: SHA-256 that changes when the data does.
    """

    train: Split | FileSplit
    test: Split | FileSplit
    fingerprint: str
    class_names: tuple[str, ...] = ()
    corrupt: int = 0
    """Images that could not be decoded and were left out."""
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    """Measured channel statistics, where :class:`DataFacts` leaves them open."""
    validation: Split | FileSplit | None = None
    """Images cut from the training images, see :mod:`kdbench.data.splits`."""


class Dataset(Protocol):
    """A data set; its keyword-only constructor arguments are settings of the suite's ``[data]`` table."""

    def facts(self) -> DataFacts:
        """Sizes and content, without decoding an image. Raises ``DataError`` where the data is missing."""

    def load(self) -> Arrays:
        """Read it; decode at most once and keep the arrays in the cache folder."""
