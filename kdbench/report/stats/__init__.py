"""The statistics of the report: pure functions on numbers. Every result includes the sample size.

What each of them covers, and how often, is measured by ``benchmarks/coverage.py`` and told in ``docs/statistics.md``.
"""

from kdbench.report.stats.estimate import CONFIDENCE, ROUNDING, Array, Estimate, bounded, estimate, summary
from kdbench.report.stats.over import (
    EQUIVALENCE,
    PAIRS_FOR_INTERVAL,
    TEACHERS_FOR_INTERVAL,
    Mean,
    clustered,
    holm,
    probability_of_improvement,
)
from kdbench.report.stats.ranks import (
    DIVERGED,
    Comparison,
    RankInterval,
    compare_over_pairs,
    complete_block,
    critical_difference,
    indistinguishable,
    mean_ranks,
    ranks,
)
from kdbench.report.stats.within import (
    POWER,
    Noise,
    Scores,
    behind_best,
    dunnett,
    gains,
    is_excluded,
    noise,
    resolvable,
    seeds_needed,
)

__all__ = [
    "CONFIDENCE",
    "DIVERGED",
    "EQUIVALENCE",
    "PAIRS_FOR_INTERVAL",
    "POWER",
    "ROUNDING",
    "TEACHERS_FOR_INTERVAL",
    "Array",
    "Comparison",
    "Estimate",
    "Mean",
    "Noise",
    "RankInterval",
    "Scores",
    "behind_best",
    "bounded",
    "clustered",
    "compare_over_pairs",
    "complete_block",
    "critical_difference",
    "dunnett",
    "estimate",
    "gains",
    "holm",
    "indistinguishable",
    "is_excluded",
    "mean_ranks",
    "noise",
    "probability_of_improvement",
    "ranks",
    "resolvable",
    "seeds_needed",
    "summary",
]
