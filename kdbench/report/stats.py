"""The statistics of the report: pure functions on numbers. Every result includes the sample size.

Sources: Student (1908) for the intervals; Friedman (1937) and Nemenyi (1963) as recommended for comparing
methods over several data sets by Demšar, JMLR 7 (2006), https://jmlr.org/papers/v7/demsar06a.html; Efron (1979)
for the bootstrap.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

CONFIDENCE = 0.95
PAIRS_FOR_INTERVAL = 5
"""Minimum number of pairs for intervals over pair means and for tests over pairs."""
DIVERGED = -math.inf
"""The score of a diverged trial: any mean that includes it ranks last."""

ROUNDING = 1e-5
"""Difference in percentage points that rounding may cause; one image in a million is ten times as much."""

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Estimate:
    """A mean with its uncertainty. ``n`` is always known."""

    n: int
    mean: float | None = None
    std: float | None = None
    """Sample standard deviation (divisor n - 1); None below two values."""
    low: float | None = None
    high: float | None = None
    """Bounds of the two-sided Student-t interval; None below two values, and if differences do not vary."""

    @property
    def resolved(self) -> bool | None:
        """For a difference: whether its interval excludes 0. None without an interval."""
        if self.low is None or self.high is None:
            return None
        return not self.low <= 0 <= self.high

    @property
    def half_width(self) -> float | None:
        """Half the interval's width."""
        return None if self.low is None or self.high is None else (self.high - self.low) / 2


def estimate(values: Iterable[float], confidence: float = CONFIDENCE) -> Estimate:
    """Mean, sample standard deviation and Student-t interval of independent values."""
    sample = np.asarray(list(values), dtype=np.float64)
    n = len(sample)
    if n == 0:
        return Estimate(0)
    mean = float(sample.mean())
    if n == 1:
        return Estimate(1, mean)
    std = float(sample.std(ddof=1))
    half = float(stats.t.ppf((1 + confidence) / 2, n - 1)) * std / math.sqrt(n)
    return Estimate(n, mean, std, mean - half, mean + half)


def paired_difference(
    ours: Mapping[int, float], theirs: Mapping[int, float], confidence: float = CONFIDENCE
) -> Estimate:
    """``ours - theirs`` over the seeds that both have; values by seed.

    Differences that are all the same, but not 0, give no interval: accuracies are counts of test images, and on
    few images and few seeds equal counts are a coincidence, not certainty.
    """
    seeds = sorted(ours.keys() & theirs.keys())
    found = estimate((ours[seed] - theirs[seed] for seed in seeds), confidence)
    if found.std is not None and found.mean is not None and found.std < ROUNDING < abs(found.mean):
        return Estimate(found.n, found.mean, found.std)
    return found


def over_pairs(means: Iterable[float], confidence: float = CONFIDENCE) -> Estimate:
    """A mean over pairs, each pair counted once; with an interval for at least :data:`PAIRS_FOR_INTERVAL` pairs."""
    whole = estimate(means, confidence)
    if whole.n >= PAIRS_FOR_INTERVAL:
        return whole
    return Estimate(whole.n, whole.mean, whole.std)


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
class RankInterval:
    """A mean rank over pairs and its bootstrap interval; None if there is nothing to resample."""

    mean: float
    low: float | None = None
    high: float | None = None


def mean_ranks(
    scores: Sequence[Array], *, draws: int = 2000, confidence: float = CONFIDENCE, seed: int = 0
) -> list[RankInterval]:
    """Mean rank of each method over pairs, with a percentile bootstrap interval.

    ``scores``: one array per pair, (seeds, methods), :data:`DIVERGED` for a diverged trial. A pair's ranking is
    that of the means over seeds. Each draw takes seeds with replacement within each pair and, from
    :data:`PAIRS_FOR_INTERVAL` pairs on, pairs with replacement; with fewer pairs, the interval does not generalise
    beyond them. There is no interval if every pair has one seed and there are fewer pairs than that.
    """
    points = np.stack([ranks(pair.mean(axis=0)) for pair in scores])
    drawn_pairs = len(scores) >= PAIRS_FOR_INTERVAL
    if not drawn_pairs and all(len(pair) < 2 for pair in scores):
        return [RankInterval(float(mean)) for mean in points.mean(axis=0)]
    generator = np.random.default_rng(seed)
    sampled = np.empty((draws, len(scores), points.shape[1]))
    for index, pair in enumerate(scores):
        chosen = generator.integers(len(pair), size=(draws, len(pair)))
        sampled[:, index] = ranks(pair[chosen].mean(axis=1))
    if drawn_pairs:
        chosen = generator.integers(len(scores), size=(draws, len(scores)))
        sampled = np.take_along_axis(sampled, chosen[:, :, None], axis=1)
    tail = (1 - confidence) / 2
    low, high = np.quantile(sampled.mean(axis=1), [tail, 1 - tail], axis=0)
    return [RankInterval(float(m), float(a), float(b)) for m, a, b in zip(points.mean(axis=0), low, high, strict=True)]


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
