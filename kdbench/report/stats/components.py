"""How much of the variation of a score, or of a difference, comes from where; in percentage points.

A score of one pair is the sum of its method's mean, an effect of its seed that all methods have in common, and noise
(:mod:`~kdbench.report.stats.within`). All trials of a pair share one test set, which is a sample of images.

Sources: Williams, Biometrika 49 (1962), 278-281, for the interval of a component in the analysis of variance;
Bouthillier et al., MLSys 2021, https://arxiv.org/abs/2103.03098, for the sources of variation of a benchmark; Searle,
Casella and McCulloch, Variance Components (1992), https://doi.org/10.1002/9780470316856, for seeds crossed with images.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from kdbench.report.stats.estimate import CONFIDENCE
from kdbench.report.stats.within import Noise, Same, Scores, distinct

Correct = NDArray[np.bool_]
"""(seeds, images): whether the network of each seed classifies each test image correctly."""


@dataclass(frozen=True)
class Spread:
    """A standard deviation in points with its two-sided interval."""

    std: float
    low: float
    high: float
    freedom: int


def of_training(found: Noise, confidence: float = CONFIDENCE) -> Spread:
    """The noise of one training, with the interval of a variance of normal values (chi-squared)."""
    low, high = (
        found.std * math.sqrt(found.freedom / float(stats.chi2.ppf(share, found.freedom)))
        for share in ((1 + confidence) / 2, (1 - confidence) / 2)
    )
    return Spread(found.std, low, high, found.freedom)


def of_seeds(
    scores: Scores, found: Noise, confidence: float = CONFIDENCE, *, same: Same | None = None
) -> Spread | None:
    """What all methods have in common at a seed; None for tables with gaps, or fewer than two methods or seeds.

    From the means of the seeds, by analysis of variance; negative estimates of the variance, and of its bounds, are 0.
    Williams's interval contains the true value with at least ``1 - 2 (1 - confidence)``, in simulated tables with about
    ``confidence`` (``docs/statistics.md``). Methods that are noisier than the others are left out, and students that
    are the ``same`` count once.
    """
    first = distinct(scores, same or {})
    included = {
        label: values for label, values in scores.items() if values and label not in found.own and label == first[label]
    }
    seeds = {frozenset(values) for values in included.values()}
    if len(seeds) != 1 or len(*seeds) < 2 or len(included) < 2:
        return None
    methods, freedom = len(included), len(*seeds) - 1
    means = [np.mean([values[seed] for values in included.values()]) for seed in sorted(*seeds)]
    between = methods * float(np.var(means, ddof=1))
    ratio = between / found.std**2

    def variance(share: float) -> float:
        fewest = float(stats.f.ppf(share, freedom, found.freedom))
        return freedom * between / float(stats.chi2.ppf(share, freedom)) * (1 - fewest / ratio) / methods

    estimated = (between - found.std**2) / methods
    low, high = (variance((1 + sign * confidence) / 2) if ratio else 0.0 for sign in (1, -1))
    std, low, high = (math.sqrt(max(0.0, value)) for value in (estimated, low, high))
    return Spread(std, low, high, freedom)


def of_one_test_set(top1: float, images: int) -> float:
    """The standard deviation of one network's accuracy (percent) over test sets of as many images (binomial)."""
    p = top1 / 100
    return 100 * math.sqrt(p * (1 - p) / images)


@dataclass(frozen=True)
class OverImages:
    """How much a mean difference of two methods varies over test sets of the same size, for these trained networks."""

    std: float
    """In points."""
    own: float | None
    """The variance (points squared) from images that affect single trainings, which varies over seeds too and is part
    of the noise. None with one seed."""

    def with_seeds(self, error: float) -> float | None:
        """The standard deviation over other seeds and other images; ``error``: that of the mean over seeds alone.

        None with one seed.
        """
        if self.own is None:
            return None
        # What single images do to single trainings is in both parts, and must count once. It is estimated too, and may
        # come out larger than either of them.
        return math.sqrt(error**2 + self.std**2 - min(self.own, error**2, self.std**2))


def of_images(ours: Correct, theirs: Correct) -> OverImages:
    """How another test set would change the mean difference of two methods, by the images that only one gets right.

    ``ours``, ``theirs``: (seeds, images) booleans, of the same seeds and images. Images are crossed with seeds: the
    variance of the mean over images, and its residual part.
    """
    seeds, images = ours.shape
    difference = ours.astype(np.int8) - theirs.astype(np.int8)
    by_image = difference.mean(axis=0)
    variance = 1e4 * float(by_image.var(ddof=1)) / images
    own = None
    if seeds > 1:
        # The sum of squares that neither the seed nor the image explains.
        total = float((difference.astype(np.int64) ** 2).sum()) - difference.size * float(difference.mean()) ** 2
        by_seed = images * seeds * float(difference.mean(axis=1).var())
        rest = total - by_seed - images * seeds * float(by_image.var())
        own = 1e4 * max(0.0, rest) / ((seeds - 1) * (images - 1)) / (seeds * images)
    return OverImages(math.sqrt(variance), own)
