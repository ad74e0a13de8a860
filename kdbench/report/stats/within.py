"""Comparisons of methods on one pair, several at a time.

A score is the sum of its method's mean, an effect of its seed (and of the teacher of that seed), and noise. The noise
is estimated from all methods together, so that three seeds of eight methods give 14 degrees of freedom instead of 2.
Its variance is proportional to p (1 - p) at accuracy p, as that of a count of images is: less near 100 %.

Sources: Dunnett, JASA 50 (1955), https://doi.org/10.1080/01621459.1955.10501294, for comparisons with a baseline; Hsu,
Annals of Statistics 9 (1981), https://doi.org/10.1214/aos/1176345582, for comparisons with the best; Cochran, Annals of
Eugenics 11 (1941), https://doi.org/10.1111/j.1469-1809.1941.tb02271.x, for variances that differ.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
from scipy import optimize, stats

from kdbench.report.stats.estimate import CONFIDENCE, ROUNDING, Array, Estimate, summary, t_quantile

Scores = Mapping[str, Mapping[int, float]]
"""Of several methods on one pair: by label, then by seed, in percent."""
Same = Mapping[str, str]
"""By label: the first label whose students are the same, weight for weight; of a label that is not named, itself."""
OUTLYING = 0.05
"""Level of the test that excludes a method from the common noise, because its own is larger."""
POWER = 0.8
"""The probability with which a gain of the stated size is resolved."""
MOST_SEEDS = 1000
"""The largest number of seeds that is named."""


@dataclass(frozen=True)
class Noise:
    """How much one score varies around its method's mean and its seed's effect."""

    std: float
    """The standard deviation at the mean accuracy of the table."""
    freedom: int
    own: Mapping[str, float]
    """Of methods that are noisier than the others, which are not in :attr:`std`."""
    scales: Mapping[str, float] = field(default_factory=dict)
    """By label: the standard deviation of its scores relative to :attr:`std`."""

    def of_difference(self, label: str, other: str, n: int) -> float:
        """The standard deviation of the mean of ``n`` differences."""
        return self.std * math.hypot(self.scales.get(label, 1.0), self.scales.get(other, 1.0)) / math.sqrt(n)


def noise(scores: Scores, same: Same | None = None) -> Noise | None:
    """The noise of a table, which may have gaps; None if nothing repeats, or all residuals are 0.

    Students that are the ``same`` count once.
    """
    first = distinct(scores, same or {})
    found = _noise({label: values for label, values in scores.items() if label == first[label] and values})
    if found is None:
        return None
    scales = {label: found.scales[one] for label, one in first.items() if one in found.scales}
    own = {label: found.own[one] for label, one in first.items() if one in found.own}
    return Noise(found.std, found.freedom, own, scales)


def distinct(scores: Scores, same: Same) -> dict[str, str]:
    """By label: the first label of the table with the same students."""
    first: dict[str, str] = {}
    return {label: first.setdefault(same.get(label, label), label) for label in scores}


def _noise(included: dict[str, Mapping[int, float]]) -> Noise | None:
    own: dict[str, float] = {}
    scales, scores = _scales(included), dict(included)
    while (fitted := _fit(included, scales)) is not None:
        residuals, freedom = fitted
        noisy = _noisiest(residuals)
        if noisy is None:
            total = sum(float(np.sum(r**2)) for r in residuals.values())
            std = math.sqrt(total / freedom)
            return Noise(std, freedom, own, scales) if std > ROUNDING else None
        del included[noisy]
        own[noisy] = summary(scores[noisy].values()).std or 0.0
    return None


def _scales(scores: Scores) -> dict[str, float]:
    means = {label: float(np.mean(list(values.values()))) / 100 for label, values in scores.items()}
    # Of one wrong image in a thousand at least: no score is certain.
    variances = {label: max(p * (1 - p), 1e-3) for label, p in means.items()}
    usual = np.mean(list(variances.values())) if variances else 1.0
    return {label: math.sqrt(variance / usual) for label, variance in variances.items()}


def _fit(scores: Scores, scales: Mapping[str, float]) -> tuple[dict[str, Array], int] | None:
    """Scaled residuals of the additive model by label, and their degrees of freedom."""
    labels, seeds = list(scores), sorted({seed for values in scores.values() for seed in values})
    rows = [(label, seed) for label in labels for seed in scores[label]]
    design = np.zeros((len(rows), len(labels) + len(seeds)))
    for index, (label, seed) in enumerate(rows):
        weight = 1 / scales[label]
        design[index, labels.index(label)] = design[index, len(labels) + seeds.index(seed)] = weight
    freedom = len(rows) - int(np.linalg.matrix_rank(design)) if rows else 0
    if freedom < 1:
        return None
    observed = np.array([scores[label][seed] / scales[label] for label, seed in rows])
    found = observed - design @ np.linalg.lstsq(design, observed, rcond=None)[0]
    names = np.array([label for label, _ in rows])
    return {label: found[names == label] for label in labels}, freedom


def _noisiest(residuals: Mapping[str, Array]) -> str | None:
    """The method whose residuals are larger than chance explains, by Cochran's C; None if there is none."""
    seeds = {len(values) for values in residuals.values()}
    methods = len(residuals)
    if methods < 4 or len(seeds) != 1 or min(seeds) < 2:
        return None
    squares = {label: float(np.sum(values**2)) for label, values in residuals.items()}
    total = sum(squares.values())
    if total < ROUNDING**2:
        return None
    largest = max(squares, key=lambda label: squares[label])
    freedom = min(seeds) - 1
    f = stats.f.isf(OUTLYING / methods, freedom, (methods - 1) * freedom)
    return largest if squares[largest] / total > 1 / (1 + (methods - 1) / f) else None


def gains(
    scores: Scores, baseline: str, found: Noise | None, confidence: float = CONFIDENCE, *, same: Same | None = None
) -> dict[str, Estimate]:
    """The gain of each other method over ``baseline``, over their common seeds, by label.

    The intervals hold for all of them at once: with ``confidence``, every one contains its true gain. That of students
    that are the ``same`` as the baseline's is 0, whatever the noise.
    """
    first = distinct(scores, same or {})
    theirs = scores.get(baseline, {})
    others = {one for one in first.values() if one != first.get(baseline)}
    critical = 0.0 if found is None else dunnett(len(others), found.freedom, confidence)
    result = {}
    for label in scores:
        if label == baseline:
            continue
        gain = _difference(scores[label], theirs)
        half = _half_width(label, baseline, gain, found, critical, 1 - (1 - confidence) / max(1, len(others)))
        result[label] = _with(gain, 0.0 if first[label] == first.get(baseline) else half)
    return result


def behind_best(
    scores: Scores, found: Noise | None, confidence: float = CONFIDENCE, *, same: Same | None = None
) -> dict[str, Estimate]:
    """The distance of each method to the best of the others, over their common seeds, by label.

    With ``confidence``, all intervals contain the true distances to the truly best other method at once. A method whose
    interval is below 0 is not the best; the others may be. For the method with the highest mean, it is the distance to
    the second. Students that are the ``same`` as those of the highest mean are at a distance of 0, whatever the noise.
    """
    if len(scores) < 2:
        return {label: Estimate(0) for label in scores}
    first = distinct(scores, same or {})
    comparisons = len(set(first.values())) - 1
    means = {label: summary(values.values()).mean or -math.inf for label, values in scores.items()}
    critical = 0.0 if found is None else dunnett(comparisons, found.freedom, confidence, two_sided=False)
    share = 1 - 2 * (1 - confidence) / max(1, comparisons)
    result = {}
    for label, ours in scores.items():
        compared: list[tuple[float, float]] = []
        for other, theirs in scores.items():
            if first[other] != first[label]:
                distance = _difference(ours, theirs)
                half = _half_width(label, other, distance, found, critical, share)
                if distance.mean is not None and half is not None:
                    compared.append((distance.mean, half))
        best = max((one for one in scores if one != label), key=lambda one: means[one])
        nearest = _difference(ours, scores[best])
        if first[best] == first[label]:
            result[label] = _with(nearest, 0.0)
            continue
        if len(compared) < sum(one != first[label] for one in first.values()):
            result[label] = Estimate(nearest.n, nearest.mean, nearest.std)
            continue
        low, high = (min(mean + sign * half for mean, half in compared) for sign in (-1, 1))
        # Constrained: nothing is said about how far the best is ahead of what it is better than for certain.
        result[label] = Estimate(nearest.n, nearest.mean, nearest.std, min(0.0, low), max(0.0, high))
    return result


def is_excluded(distance: Estimate) -> bool:
    """Whether a method is not the best, by its distance from :func:`behind_best`."""
    return distance.high == 0.0 and bool(distance.mean)


def _difference(ours: Mapping[int, float], theirs: Mapping[int, float]) -> Estimate:
    return summary(ours[seed] - theirs[seed] for seed in sorted(ours.keys() & theirs.keys()))


def _half_width(
    label: str, other: str, difference: Estimate, found: Noise | None, critical: float, share: float
) -> float | None:
    """Half the width of a difference's interval; ``share``: the confidence for methods with a noise of their own."""
    if found is None or difference.mean is None:
        return None
    error = standard_error(found, label, other, difference)
    if error is None:
        return None
    own = label in found.own or other in found.own
    return (t_quantile(share, difference.n - 1) if own else critical) * error


def standard_error(found: Noise, label: str, other: str, difference: Estimate) -> float | None:
    """Of a mean difference of two methods over seeds, in points; None if a method has a noise of its own and the
    differences do not vary."""
    if label not in found.own and other not in found.own:
        return found.of_difference(label, other, difference.n) if difference.n else None
    if difference.std is None or difference.std < ROUNDING:
        return None
    return difference.std / math.sqrt(difference.n)


def _with(difference: Estimate, half: float | None) -> Estimate:
    if difference.mean is None or half is None:
        return difference
    low, high = max(-100.0, difference.mean - half), min(100.0, difference.mean + half)
    return Estimate(difference.n, difference.mean, difference.std, low, high)


@lru_cache(maxsize=1024)
def dunnett(comparisons: int, freedom: int, confidence: float = CONFIDENCE, *, two_sided: bool = True) -> float:
    """The critical value of Dunnett's ``comparisons`` with one baseline, at equal numbers of values; t for one.

    The differences have a correlation of 1/2. Relative error below 1e-4.
    """
    if comparisons < 1:
        return 0.0
    if comparisons == 1:
        return t_quantile(confidence if two_sided else 2 * confidence - 1, freedom)
    nodes, weights = np.polynomial.legendre.leggauss(200)
    shares = (nodes + 1) / 2
    scales = np.sqrt(stats.chi2.ppf(shares, freedom) / freedom)
    points, masses = np.polynomial.hermite_e.hermegauss(80)

    def covered(critical: float) -> float:
        bound = math.sqrt(2) * critical * scales[:, None]
        inside = stats.norm.cdf(points + bound) - (stats.norm.cdf(points - bound) if two_sided else 0.0)
        given_scale = inside**comparisons @ masses / math.sqrt(2 * math.pi)
        return float(given_scale @ weights / 2)

    # Bonferroni's value is larger, that of a single comparison smaller.
    tails = 2 if two_sided else 1
    highest = float(stats.t.isf((1 - confidence) / tails / comparisons, freedom))
    lowest = float(stats.t.isf((1 - confidence) / tails, freedom))
    bounds = lowest * 0.99, highest * 1.01
    return float(optimize.brentq(lambda value: covered(value) - confidence, *bounds, xtol=1e-6))


def resolvable(found: Noise, seeds: int, comparisons: int, confidence: float = CONFIDENCE) -> float:
    """The gain that is resolved with a probability of :data:`POWER`, in points, with as many seeds and methods."""
    power = float(stats.t.ppf(POWER, found.freedom))
    return (dunnett(comparisons, found.freedom, confidence) + power) * found.std * math.sqrt(2 / seeds)


def seeds_needed(found: Noise, gain: float, comparisons: int, confidence: float = CONFIDENCE) -> int | None:
    """The number of seeds that resolves a gain (points) as in :func:`resolvable`; None above :data:`MOST_SEEDS`."""

    def enough(seeds: int) -> bool:
        freedom = max(1, comparisons * (seeds - 1))
        return resolvable(Noise(found.std, freedom, {}), seeds, comparisons, confidence) <= gain

    if not enough(MOST_SEEDS):
        return None
    low, high = 1, MOST_SEEDS
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high
