"""Subsets of data sets: fewer images, and a validation split. They are stratified and determined by a seed.

``train_limit`` and ``test_limit`` of the suite's ``[data]`` table are applied first; then ``validation`` is taken
from the remaining training images.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from kdbench.data.base import Arrays, DataFacts
from kdbench.errors import DataError
from kdbench.seeding import derive


def stratified(labels: NDArray[np.int64], count: int, *, seed: int, purpose: str) -> NDArray[np.int64]:
    """Indices (count,) of a random stratified subset, in ascending order.

    Class sizes are rounded by largest remainder, so that they sum to ``count``; for equal remainders the lower
    class comes first. ``labels``: (N,), with N at least ``count``.
    """
    # The stream of RandomState never changes (NEP 19); that of the newer Generator may.
    random = np.random.RandomState(derive(seed, purpose) % 2**32)
    sizes = np.bincount(labels)
    quotas, remainders = np.divmod(sizes * count, len(labels))
    rounded_up = np.argsort(-remainders, kind="stable")[: count - quotas.sum()]
    quotas[rounded_up] += 1
    shuffled = random.permutation(len(labels))
    by_class = shuffled[np.argsort(labels[shuffled], kind="stable")]
    ends = np.cumsum(sizes)
    chosen = [by_class[end - size : end - size + quota] for end, size, quota in zip(ends, sizes, quotas, strict=True)]
    return np.sort(np.concatenate(chosen))


def limit(
    arrays: Arrays,
    *,
    train_limit: int | None = None,
    test_limit: int | None = None,
    validation: int | float | None = None,
    seed: int = 0,
) -> Arrays:
    """Limit the number of images, and take a validation split from the training images.

    ``validation``: a number of images, or a fraction below 1 of the training images after ``train_limit``.
    Training images keep their order, and their indices are 0 to n_train - 1. The seed belongs to the data, not to
    a trial: all seeds of a suite use the same images. Raises :class:`~kdbench.errors.DataError` if there are too
    few images.
    """
    if train_limit is None and test_limit is None and not validation:
        return arrays
    train, test, held_out = arrays.train, arrays.test, None
    if train_limit is not None:
        _require("train_limit", train_limit, len(train.labels), "training")
        train = train.take(stratified(train.labels, train_limit, seed=seed, purpose="train_limit"))
    if test_limit is not None:
        _require("test_limit", test_limit, len(test.labels), "test")
        test = test.take(stratified(test.labels, test_limit, seed=seed, purpose="test_limit"))
    if validation:
        count = _validation_count(validation, len(train.labels))
        indices = stratified(train.labels, count, seed=seed, purpose="validation")
        kept = np.setdiff1d(np.arange(len(train.labels)), indices)
        held_out, train = train.take(indices), train.take(kept)
    text = repr((arrays.fingerprint, train_limit, test_limit, validation, seed))
    fingerprint = hashlib.sha256(text.encode()).hexdigest()
    return replace(arrays, train=train, test=test, validation=held_out, fingerprint=fingerprint)


def limit_facts(
    facts: DataFacts,
    *,
    train_limit: int | None = None,
    test_limit: int | None = None,
    validation: int | float | None = None,
) -> DataFacts:
    """The sizes after :func:`limit`, without reading an image; mean and std stay those of all images."""
    n_train, n_test, n_validation = facts.n_train, facts.n_test, 0
    if train_limit is not None:
        n_train = _require("train_limit", train_limit, n_train, "training")
    if test_limit is not None:
        n_test = _require("test_limit", test_limit, n_test, "test")
    if validation:
        n_validation = _validation_count(validation, n_train)
        n_train -= n_validation
    return replace(facts, n_train=n_train, n_test=n_test, n_validation=n_validation)


def _require(key: str, count: int, available: int, split: str) -> int:
    if not 0 < count <= available:
        raise DataError(f"data.{key}: must be 1 to {available}, the number of {split} images, got {count}")
    return count


def _validation_count(validation: int | float, n_train: int) -> int:
    count = round(validation * n_train) if isinstance(validation, float) else validation
    if not 0 < count < n_train:
        raise DataError(
            f"data.validation: must leave at least one image in both parts of {n_train} training images, "
            f"as a number of images or a fraction below 1, got {validation}"
        )
    return count
