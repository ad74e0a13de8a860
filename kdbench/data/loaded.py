"""Checks a loaded data set against its facts, so that a plugin's mistake is found before training."""

from __future__ import annotations

import math

import numpy as np

from kdbench.data.base import Arrays, DataFacts, FileSplit, Split
from kdbench.errors import DataError


def check_loaded(arrays: object, facts: DataFacts, name: str) -> Arrays:
    """Return ``arrays`` if it agrees with ``facts`` of the whole data set.

    Raises ``DataError`` for wrong types, shapes, numbers of images, or labels outside 0 .. classes - 1.
    """
    where = f"data set '{name}': load()"
    if not isinstance(arrays, Arrays):
        raise DataError(f"{where} must return kdbench.data.base.Arrays, got {type(arrays).__name__}")
    for kind, expected in (("train", facts.n_train), ("test", facts.n_test)):
        split = getattr(arrays, kind)
        problem = _problem(split, facts)
        if not problem and not (len(split.labels) == expected or (0 < len(split.labels) < expected and arrays.corrupt)):
            problem = f"has {len(split.labels)} images, but facts() gives {expected}"
        if problem:
            raise DataError(f"{where}: the {kind} split {problem}")
    if type(arrays.train) is not type(arrays.test):
        raise DataError(f"{where}: one split is in memory and the other in files; load both in the same way")
    channels = facts.image_shape[0]
    for key in ("mean", "std"):
        values = getattr(facts, key) or getattr(arrays, key)
        if values is None or len(values) != channels or not all(map(math.isfinite, values)):
            raise DataError(f"{where}: {key} must be {channels} finite numbers, from facts() or load(), got {values!r}")
    if not isinstance(arrays.fingerprint, str) or not arrays.fingerprint:
        raise DataError(f"{where}: fingerprint must be a hash of the data, got {arrays.fingerprint!r}")
    return arrays


def _problem(split: object, facts: DataFacts) -> str:
    if not isinstance(split, Split | FileSplit):
        return f"must be a Split or FileSplit, got {type(split).__name__}"
    labels = split.labels
    if not isinstance(labels, np.ndarray) or labels.dtype != np.int64 or labels.ndim != 1:
        return f"must have labels (N,) of int64, got {_described(labels)}"
    images = split.images if isinstance(split, Split) else split.files
    if isinstance(split, Split):
        expected = ", ".join(map(str, facts.image_shape))
        right = isinstance(split.images, np.ndarray) and split.images.dtype == np.uint8
        if not right or split.images.shape[1:] != facts.image_shape:
            return f"must have images (N, {expected}) of uint8, got {_described(images)}"
    if len(images) != len(labels):
        return f"has {len(images)} images and {len(labels)} labels"
    if len(labels) and not 0 <= labels.min() <= labels.max() < facts.classes:
        return (
            f"has labels {labels.min()} to {labels.max()}, but the {facts.classes} classes are 0 to {facts.classes - 1}"
        )
    return ""


def _described(value: object) -> str:
    if isinstance(value, np.ndarray):
        return f"({', '.join(map(str, value.shape))}) of {value.dtype}"
    return type(value).__name__
