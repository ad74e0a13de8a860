"""The contract of a data set."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class DataFacts:
    """What is known of a data set without reading an image. ``image_shape``: (channels, height, width)."""

    classes: int
    image_shape: tuple[int, int, int]
    n_train: int
    n_test: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    """Channel mean and standard deviation of the training images, of values scaled to 0..1."""


@dataclass(frozen=True)
class Split:
    """Images (N, channels, height, width) of uint8, and their classes (N,) of int64."""

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]


@dataclass(frozen=True)
class Arrays:
    """A loaded data set. ``fingerprint``: SHA-256 that changes when the data does."""

    train: Split
    test: Split
    fingerprint: str
    class_names: tuple[str, ...] = ()
    corrupt: int = 0
    """Images that could not be decoded and were left out."""


class Dataset(Protocol):
    """A data set; its keyword-only constructor arguments are settings of the suite's ``[data]`` table."""

    def facts(self) -> DataFacts:
        """Sizes, without reading an image. Raises ``DataError`` where the data is not there."""

    def load(self) -> Arrays:
        """Read it; decode at most once and keep the arrays in the cache folder."""
