"""Comparisons of methods over pairs that are a sample of all pairs; pairs of one teacher are no independent ones.

Sources: Bell and McCaffrey, Survey Methodology 28 (2002), and Pustejovsky and Tipton, JBES 36 (2018),
https://doi.org/10.1080/07350015.2016.1247004, for the intervals; Holm, Scandinavian Journal of Statistics 6 (1979), for
several comparisons; Agarwal et al., NeurIPS 2021, https://arxiv.org/abs/2108.13264, for the probability of improvement;
Benavoli et al., JMLR 18 (2017), https://jmlr.org/papers/v18/16-305.html, for practical equivalence.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from kdbench.report.stats.estimate import CONFIDENCE, ROUNDING, Array, Estimate, summary

PAIRS_FOR_INTERVAL = 5
"""Minimum number of pairs for intervals over pair means and for tests over pairs."""
TEACHERS_FOR_INTERVAL = 2
EQUIVALENCE = 0.3
"""Points: a smaller mean gain makes no practical difference."""


@dataclass(frozen=True)
class Mean:
    """A mean over pairs with its standard error."""

    estimate: Estimate
    error: float | None = None
    """The standard error; None where there is no interval."""
    freedom: float | None = None

    @property
    def p_value(self) -> float | None:
        """Two-sided, of a mean of 0."""
        if self.error is None or self.freedom is None or self.estimate.mean is None:
            return None
        return float(2 * stats.t.sf(abs(self.estimate.mean) / self.error, self.freedom))

    def probability_above(self, bound: float) -> float | None:
        """Of a true mean above ``bound``, given the pairs and no other knowledge (flat prior)."""
        if self.error is None or self.freedom is None or self.estimate.mean is None:
            return None
        return float(stats.t.sf((bound - self.estimate.mean) / self.error, self.freedom))


def clustered(values: Sequence[float], clusters: Sequence[Hashable], confidence: float = CONFIDENCE) -> Mean:
    """The mean of one value per pair, where pairs of a cluster (a teacher) have an error in common.

    Cluster-robust variance of a mean with the correction CR2, and Bell and McCaffrey's degrees of freedom. No interval
    below :data:`PAIRS_FOR_INTERVAL` values or :data:`TEACHERS_FOR_INTERVAL` clusters, or if nothing varies.
    """
    found = summary(values)
    groups = [np.flatnonzero([one == cluster for one in clusters]) for cluster in dict.fromkeys(clusters)]
    if found.n < PAIRS_FOR_INTERVAL or len(groups) < TEACHERS_FOR_INTERVAL:
        return Mean(found)
    assert found.mean is not None
    n = found.n
    residuals = np.asarray(values, dtype=np.float64) - found.mean
    variance = sum(float(residuals[group].sum()) ** 2 / (1 - len(group) / n) for group in groups) / n**2
    if variance < ROUNDING**2:
        return Mean(found)
    # The variance is a quadratic form in the values; its first two moments are those of a chi-squared variable.
    centre = np.eye(n) - 1 / n
    loads = np.stack([centre[group].sum(axis=0) / math.sqrt(1 - len(group) / n) / n for group in groups])
    eigenvalues = np.linalg.eigvalsh(loads @ loads.T)
    freedom = float(eigenvalues.sum() ** 2 / np.sum(eigenvalues**2))
    error = math.sqrt(variance)
    half = float(stats.t.ppf((1 + confidence) / 2, freedom)) * error
    return Mean(Estimate(n, found.mean, found.std, found.mean - half, found.mean + half), error, freedom)


def holm(p_values: Iterable[float]) -> list[float]:
    """The p-values of several comparisons, each at least as large as before, so that one error in all of them is as
    rare as the level says."""
    given = list(p_values)
    adjusted, highest = [0.0] * len(given), 0.0
    for rank, index in enumerate(sorted(range(len(given)), key=lambda i: given[i])):
        highest = max(highest, min(1.0, (len(given) - rank) * given[index]))
        adjusted[index] = highest
    return adjusted


def profile(gains: Sequence[Array]) -> tuple[Array, Array]:
    """The different gains of all runs, rising, and the share of runs that gain at least as much.

    One array of gains per pair, (seeds,); each pair has the same weight, however many seeds it has. Pairs without gains
    are left out; -inf is a run that reaches no gain, and is in no value.
    """
    known = [np.asarray(one, dtype=np.float64) for one in gains if len(one)]
    if not known:
        return np.empty(0), np.empty(0)
    values = np.concatenate(known)
    weights = np.concatenate([np.full(len(one), 1 / len(one) / len(known)) for one in known])
    values, weights = values[np.isfinite(values)], weights[np.isfinite(values)]
    # Gains that differ by rounding are one.
    levels, index = np.unique(np.round(values / ROUNDING), return_inverse=True)
    masses = np.bincount(index, weights, minlength=len(levels)).astype(np.float64)
    return np.asarray(levels * ROUNDING), np.cumsum(masses[::-1])[::-1]


def probability_of_improvement(ours: Sequence[Array], theirs: Sequence[Array]) -> float | None:
    """That a run of ours has a higher score than one of theirs on the same pair: the mean over pairs; ties count half.

    One array of scores per pair; pairs without scores are left out.
    """
    shares = [
        float(np.mean((a[:, None] - b > ROUNDING) + 0.5 * (np.abs(a[:, None] - b) <= ROUNDING)))
        for a, b in zip(ours, theirs, strict=True)
        if len(a) and len(b)
    ]
    return float(np.mean(shares)) if shares else None
