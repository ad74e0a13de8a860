"""The comparison over all pairs as a table: ``overall.csv``."""

from __future__ import annotations

from typing import Any

import pandas as pd

from kdbench.report import stats
from kdbench.report.leaderboard import Standing
from kdbench.report.study import Study

WHOLE = ("pairs", "diverged", "finished")
TEXT = ("label", "method", "why_unranked")


def over_pairs(study: Study) -> pd.DataFrame:
    """One row per method, best mean rank first.

    Gains are in percentage points, with the number of pairs and the interval over pairs; ``gain_over_*_word`` is what
    the pairs support after correction for the number of methods. Both probabilities are over the first baseline.
    ``why_unranked`` explains an empty rank.
    """
    rows = [_row(study, standing) for standing in study.overall.standings]
    frame = pd.DataFrame(rows)
    for name in frame.columns:
        if name in WHOLE or name.endswith("_n"):
            frame[name] = frame[name].astype("Int64")
        elif name not in TEXT and not name.endswith("_word"):
            frame[name] = pd.to_numeric(frame[name])
    return frame


def _row(study: Study, standing: Standing) -> dict[str, Any]:
    rank = standing.rank
    row: dict[str, Any] = {
        "label": standing.label,
        "method": standing.method,
        "pairs": standing.pairs,
        "mean_rank": rank.mean if rank else None,
        "mean_rank_low": rank.low if rank else None,
        "mean_rank_high": rank.high if rank else None,
    }
    for baseline, gain, word in zip(study.baselines, standing.gains, standing.words, strict=True):
        bounds = {"": gain.mean, "_n": gain.n, "_low": gain.low, "_high": gain.high}
        row |= {f"{baseline.gain}{part}": value for part, value in bounds.items()}
        row[f"{baseline.gain}_word"] = str(word)
    return row | {
        "probability_of_improvement": standing.improvement,
        f"probability_above_{stats.EQUIVALENCE}": standing.useful,
        "diverged": standing.diverged,
        "finished": standing.finished,
        "relative_seconds": standing.relative_seconds,
        "why_unranked": standing.why_unranked,
    }
