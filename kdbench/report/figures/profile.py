"""Performance profiles: how often a method reaches which gain.

Dolan and Moré, Mathematical Programming 91 (2002), https://doi.org/10.1007/s101070100263; for learning results, Agarwal
et al., NeurIPS 2021, https://arxiv.org/abs/2108.13264.
"""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter

from kdbench.report import stats, wording
from kdbench.report.figures.canvas import BOLD, FAINT, NARROW, PAPER, TEXT, Numbers, joined, labelled, legend, marker
from kdbench.report.leaderboard import common_scores
from kdbench.report.strip import limits
from kdbench.report.study import Study
from kdbench.report.styles import NEUTRAL


def performance_profile(study: Study) -> tuple[Figure, str] | None:
    """The share of runs whose gain over the baseline is at least τ, by method; from five pairs on."""
    base = study.reference.label
    pairs, methods = study.overall.pairs, study.overall.methods
    if len(pairs) < stats.PAIRS_FOR_INTERVAL or base not in methods or len(methods) < 2:
        return None
    gains = _gains(study)
    drawn = [label for label in methods if label != base]
    finite = np.concatenate([values[np.isfinite(values)] for label in drawn for values in gains[label]])
    if not len(finite):
        return None
    low, high = limits(list(finite), [0.0])
    figure = Figure(figsize=(NARROW, 4.2), layout="constrained")
    axes = figure.add_subplot()
    axes.axvline(0, color=NEUTRAL, linestyle=(0, (4, 2)), linewidth=1)
    axes.axhline(50, color=TEXT, linestyle=(0, (1, 1.5)), linewidth=0.8)
    named, others = labelled(study, set(drawn))
    curves = {label: _staircase(*stats.profile(gains[label]), low, high) for label in drawn}
    if others:
        axes.plot(*joined(curves[label] for label in others), color=FAINT, linewidth=0.7)
    for index, label in enumerate(named):
        own, style = label in study.highlighted, study.styles[label]
        # Markers at other places for each method, so that they do not cover one another.
        axes.plot(
            *curves[label], color=style.colour, linewidth=BOLD if own else 1.4, zorder=4 if own else 2,
            marker=style.marker, markersize=4.5, markeredgecolor=PAPER, markeredgewidth=0.5,
            markevery=(0.02 + 0.12 * index / len(named), 0.12),
        )  # fmt: skip
    axes.set_xlim(low, high)
    axes.set_ylim(-2, 102)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g} %"))
    axes.set_xlabel(f"gain over {base} at the same seed, τ in points")
    axes.set_ylabel("runs with a gain of at least τ")
    handles = [marker(study, label, linestyle="-") for label in named]
    if others:
        handles.append(Line2D([], [], color=FAINT, label="others", linewidth=0.8))
    legend(figure, handles)
    grey = f" {wording.plural(len(others), 'other')} in grey." if others else ""
    return figure, (
        f"Performance profiles over {len(pairs)} pairs: the share of runs (pair and seed) whose gain over {base} at "
        "the same seed is at least τ; each pair has the same weight. Higher is better. A curve crosses the dotted line "
        "at its median gain. Diverged runs reach no gain. No uncertainty is drawn: a curve can be above another by "
        f"chance, and pairs of one teacher are not independent. The table above has intervals.{grey}"
    )


def _gains(study: Study) -> dict[str, list[Numbers]]:
    """By label, the gains of each compared pair: (seeds,), -inf for a diverged run; without seeds where the baseline
    diverged."""
    methods = study.overall.methods
    base = methods.index(study.reference.label)
    found: dict[str, list[Numbers]] = {label: [] for label in methods}
    for pair in study.overall.pairs:
        scores = common_scores(study.trials, pair, methods)
        scores = scores[np.isfinite(scores[:, base])]
        for column, label in enumerate(methods):
            found[label].append(scores[:, column] - scores[:, base])
    return found


def _staircase(gains: Numbers, shares: Numbers, low: float, high: float) -> tuple[Numbers, Numbers]:
    """The corners of a profile within the panel, in percent: constant up to each gain, and lower right after it.

    Flat ends at 0 and 100 % are left out: there, the lines of all methods would cover one another.
    """
    percent = 100 * np.append(shares, 0.0)
    first, last = np.searchsorted(gains, low), np.searchsorted(gains, high, side="right")
    corners = np.stack([percent[first:last], percent[first + 1 : last + 1]], axis=1).ravel()
    x, y = np.repeat(gains[first:last], 2), corners
    if percent[first] < 99.99:
        x, y = np.append(low, x), np.append(percent[first], y)
    if percent[last] > 0.01:
        x, y = np.append(x, high), np.append(y, percent[last])
    return x, y
