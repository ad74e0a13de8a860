"""The small drawing in each row of a pair's table: a dot per seed, mean, standard deviation and the baseline."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

WIDTH = 200.0
MARGIN = 6.0


def limits(values: Sequence[float], always: Sequence[float] = ()) -> tuple[float, float]:
    """An axis range that ignores outliers, so that the differences between the other values are visible.

    Values further out than three interquartile ranges are outside, unless listed in ``always``.
    """
    sample = np.asarray([*values, *always], dtype=np.float64)
    if len(sample) == 0:
        return 0.0, 100.0
    first, third = np.quantile(sample, [0.25, 0.75])
    reach = 3 * max(third - first, 0.25)
    inside = sample[(sample >= first - reach) & (sample <= third + reach)]
    low, high = min([inside.min(), *always]), max([inside.max(), *always])
    padding = 0.06 * max(high - low, 0.5)
    return float(low - padding), float(high + padding)


@dataclass(frozen=True)
class Strip:
    """Positions in user units of an SVG that is :data:`WIDTH` wide."""

    dots: tuple[float, ...]
    mean: float | None
    low: float | None
    """Mean minus one standard deviation."""
    high: float | None
    baseline: float | None
    beyond: str
    """``left`` or ``right`` if the mean is outside the range."""


def strip(
    values: Sequence[float], mean: float | None, std: float | None, baseline: float | None, range_: tuple[float, float]
) -> Strip:
    """Positions of the seeds of one method on the common range of its pair."""
    low, high = range_

    def place(value: float | None) -> float | None:
        if value is None or value != value:
            return None
        share = min(1.0, max(0.0, (value - low) / (high - low)))
        return round(MARGIN + share * (WIDTH - 2 * MARGIN), 1)

    spread = None if mean is None or std is None or std != std else std
    beyond = "" if mean is None or mean != mean or low <= mean <= high else ("left" if mean < low else "right")
    return Strip(
        dots=tuple(p for p in (place(v) for v in values if low <= v <= high) if p is not None),
        mean=place(mean),
        low=place(mean - spread) if mean is not None and spread is not None else None,
        high=place(mean + spread) if mean is not None and spread is not None else None,
        baseline=place(baseline) if baseline is not None and low <= baseline <= high else None,
        beyond=beyond,
    )
