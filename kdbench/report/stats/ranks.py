"""Ranks of methods over pairs. ``scores``: percent, :data:`DIVERGED` for a diverged trial.

Sources: Friedman (1937) and Nemenyi (1963), as recommended by Demšar, JMLR 7 (2006),
https://jmlr.org/papers/v7/demsar06a.html.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from kdbench.report.stats.estimate import CONFIDENCE, ROUNDING, Array, bounded
from kdbench.report.stats.over import PAIRS_FOR_INTERVAL, clustered

DIVERGED = -math.inf
"""The score of a diverged trial: any mean that includes it ranks last."""


def ranks(scores: Array) -> Array:
    """Ranks along the last axis: 1 for the highest score, equal scores share the mean of their ranks.

    Scores are in percent. Neighbours that differ by at most :data:`ROUNDING` are equal.
    """
    descending = -np.asarray(scores, dtype=np.float64)
    order = np.argsort(descending, axis=-1)
    # The infinities of diverged trials are equal; their difference is not a number.
    with np.errstate(invalid="ignore"):
        apart = np.diff(np.take_along_axis(descending, order, -1), axis=-1) > ROUNDING
    levels = np.zeros(descending.shape, dtype=np.int64)
    np.put_along_axis(levels, order[..., 1:], np.cumsum(apart, axis=-1), -1)
    return np.asarray(stats.rankdata(levels, axis=-1), dtype=np.float64)


@dataclass(frozen=True)
class RankInterval:
    """A mean rank over pairs and its interval; None if the pairs do not support one."""

    mean: float
    low: float | None = None
    high: float | None = None


def mean_ranks(scores: Array, teachers: Sequence[str], *, intervals: bool = True) -> list[RankInterval]:
    """The mean rank of each method over pairs. ``scores``: (pairs, methods); ``teachers``: of the pairs.

    The intervals are those of :func:`~kdbench.report.stats.over.clustered`, for pairs that are a sample of all pairs.
    """
    found = []
    for values in ranks(scores).T:
        if not intervals:
            found.append(RankInterval(float(values.mean())))
            continue
        rank = bounded(clustered(values.tolist(), teachers).estimate, 1, scores.shape[1])
        found.append(RankInterval(float(values.mean()), rank.low, rank.high))
    return found


def complete_block(present: NDArray[np.bool_]) -> tuple[list[int], list[int]]:
    """Rows and columns of a block without gaps; ``present``: (methods, pairs).

    Comparing methods over pairs needs every method on every pair, without imputation. One at a time, this removes a
    pair that most methods lack or, if there is none, the method that lacks the most pairs.
    """
    # Remove rows and columns without any result first.
    rows, columns = (np.flatnonzero(present.any(axis=axis)).tolist() for axis in (1, 0))
    while rows and columns:
        block = present[np.ix_(rows, columns)]
        if block.all():
            return rows, columns
        gaps = 1 - block.mean(axis=0)
        if len(columns) > 1 and gaps.max() > 0.5:
            columns.pop(int(gaps.argmax()))
        else:
            rows.pop(int((1 - block.mean(axis=1)).argmax()))
    return [], []


@dataclass(frozen=True)
class Comparison:
    """Friedman's test over pairs and Nemenyi's critical difference."""

    pairs: int
    methods: int
    statistic: float
    p_value: float
    critical_difference: float


def compare_over_pairs(scores: Array, confidence: float = CONFIDENCE) -> Comparison | None:
    """Friedman's test and Nemenyi's critical difference; ``scores``: (pairs, methods).

    None below :data:`PAIRS_FOR_INTERVAL` pairs or three methods, or if all methods have the same score on every pair.
    """
    pairs, methods = scores.shape
    if pairs < PAIRS_FOR_INTERVAL or methods < 3:
        return None
    ranked = ranks(scores)
    if np.ptp(ranked, axis=1).max() == 0:
        return None
    # Ranks instead of scores: -inf of a diverged cell would yield NaN.
    test = stats.friedmanchisquare(*ranked.T)
    return Comparison(
        pairs,
        methods,
        float(test.statistic),
        float(test.pvalue),
        critical_difference(methods, pairs, confidence),
    )


def critical_difference(methods: int, pairs: int, confidence: float = CONFIDENCE) -> float:
    """Nemenyi's: smaller differences between mean ranks over ``pairs`` are not significant."""
    q = float(stats.studentized_range.ppf(confidence, methods, np.inf)) / math.sqrt(2)
    return q * math.sqrt(methods * (methods + 1) / (6 * pairs))


def indistinguishable(mean_ranks: Sequence[float], difference: float) -> list[tuple[int, int]]:
    """Maximal runs (first and last index, two members or more) of rising mean ranks nearer than ``difference``."""
    runs: list[tuple[int, int]] = []
    for first, start in enumerate(mean_ranks):
        last = max(i for i, rank in enumerate(mean_ranks) if rank - start < difference)
        if last > first and (not runs or last > runs[-1][1]):
            runs.append((first, last))
    return runs
