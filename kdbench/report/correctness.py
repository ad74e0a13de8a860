"""Comparison of two students image by image, by which test images each classifies correctly."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import special


def mcnemar(correct_a: NDArray[np.bool_] | Sequence[bool], correct_b: NDArray[np.bool_] | Sequence[bool]) -> float:
    """The exact two-sided p-value of McNemar's test of two classifiers on the same images; 1 if none differs.

    ``correct_a``, ``correct_b``: (N,) booleans, whether each classifies the image correctly. Only images count that
    one of them alone classifies correctly: if both have the same accuracy on the images' population, the number of
    those that are right for the first is binomial with probability 1/2.

    The images are the sample: a small p-value says that these two trained networks differ in accuracy. It says nothing
    about other trainings of the two methods, for which seeds are the sample.

    Sources: McNemar, Psychometrika 12 (1947), https://doi.org/10.1007/BF02295996; Dietterich, Neural Computation 10
    (1998), https://doi.org/10.1162/089976698300017197.

    Raises:
        ValueError: the arrays do not hold booleans, or differ in shape, or are not one-dimensional.
    """
    a, b = np.asarray(correct_a), np.asarray(correct_b)
    if a.dtype != bool or b.dtype != bool:
        raise ValueError(f"correct_a and correct_b must be booleans, got {a.dtype} and {b.dtype}")
    if a.ndim != 1 or a.shape != b.shape:
        raise ValueError(f"correct_a and correct_b must have one shape (N,), got {a.shape} and {b.shape}")
    only_a, only_b = int((a & ~b).sum()), int((b & ~a).sum())
    # The distribution is symmetric: twice one tail, as scipy.stats.binomtest has it, in a tenth of its time.
    return min(1.0, 2 * float(special.bdtr(min(only_a, only_b), only_a + only_b, 0.5)))


@dataclass(frozen=True)
class Discordant:
    """The test images that only one of two networks classifies correctly."""

    ours: int
    theirs: int
    p_value: float
    """Of :func:`mcnemar`."""


def discordant(ours: NDArray[np.bool_], theirs: NDArray[np.bool_]) -> Discordant:
    """Compare two networks image by image; ``ours``, ``theirs``: as in :func:`mcnemar`."""
    p_value = mcnemar(ours, theirs)
    return Discordant(int((ours & ~theirs).sum()), int((theirs & ~ours).sum()), p_value)
