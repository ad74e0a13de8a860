"""A mean with its uncertainty."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

CONFIDENCE = 0.95
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
    """Bounds of the two-sided interval; None if the values do not support one."""

    @property
    def resolved(self) -> bool | None:
        """For a difference: whether its interval excludes 0. None without an interval."""
        if self.low is None or self.high is None:
            return None
        return not self.low <= 0 <= self.high

    @property
    def negated(self) -> Estimate:
        """Of the difference the other way round."""
        mean = None if self.mean is None else -self.mean
        low, high = (None if bound is None else -bound for bound in (self.high, self.low))
        return Estimate(self.n, mean, self.std, low, high)

    @property
    def half_width(self) -> float | None:
        """Half the interval's width."""
        return None if self.low is None or self.high is None else (self.high - self.low) / 2


def summary(values: Iterable[float]) -> Estimate:
    """Mean and sample standard deviation."""
    sample = np.asarray(list(values), dtype=np.float64)
    if len(sample) == 0:
        return Estimate(0)
    std = float(sample.std(ddof=1)) if len(sample) > 1 else None
    return Estimate(len(sample), float(sample.mean()), std)


def estimate(values: Iterable[float], confidence: float = CONFIDENCE) -> Estimate:
    """Mean, sample standard deviation and Student-t interval (Student 1908) of independent values.

    Values that are all the same give no interval: accuracies are counts of test images, and on few images and few seeds
    equal counts are a coincidence, not certainty.
    """
    found = summary(values)
    if found.mean is None or found.std is None or found.std < ROUNDING:
        return found
    half = t_quantile(confidence, found.n - 1) * found.std / math.sqrt(found.n)
    return Estimate(found.n, found.mean, found.std, found.mean - half, found.mean + half)


def t_quantile(confidence: float, freedom: float) -> float:
    """Of the two-sided Student-t interval."""
    return float(stats.t.ppf((1 + confidence) / 2, freedom))


def bounded(found: Estimate, lowest: float, highest: float) -> Estimate:
    """The same, with an interval that does not leave the possible values."""
    if found.low is None or found.high is None:
        return found
    return Estimate(found.n, found.mean, found.std, max(found.low, lowest), min(found.high, highest))
