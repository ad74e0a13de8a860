"""Mean ranks over pairs in Demšar's diagram."""

from __future__ import annotations

from matplotlib.figure import Figure

from kdbench.report import stats
from kdbench.report.figures.canvas import PAPER, SOFT, TEXT, WIDTH, ring, shown_as
from kdbench.report.study import Study


def critical_difference(study: Study) -> tuple[Figure, str] | None:
    """Demšar's diagram: mean ranks on a line, bars join methods whose differences are not significant."""
    comparison = study.overall.comparison
    if comparison is None:
        return None
    ranked = [(s.label, s.rank.mean) for s in study.overall.standings if s.rank is not None]
    groups = stats.indistinguishable([rank for _, rank in ranked], comparison.critical_difference)
    half = (len(ranked) + 1) // 2
    bars = 0.16 * len(groups)
    height = 1.1 + bars + 0.2 * half
    figure = Figure(figsize=(WIDTH - 1.5, height), layout="constrained")
    axes = figure.add_subplot()
    axes.set_axis_off()
    worst = len(ranked)
    axes.set_xlim(worst + 0.28 * worst, 1 - 0.28 * worst)
    axes.set_ylim(height, 0)
    line = 0.72
    axes.plot([1, worst], [line, line], color=TEXT, linewidth=1)
    step = 1 if worst <= 15 else 5
    for tick in sorted({1, worst, *range(step, worst, step)} if step > 1 else set(range(1, worst + 1))):
        if tick in (worst,) or step == 1 or worst - tick >= 2:
            axes.plot([tick, tick], [line - 0.06, line], color=TEXT, linewidth=1)
            axes.text(tick, line - 0.1, f"{tick}", ha="center", va="bottom", fontsize=8)
    axes.plot([1, 1 + comparison.critical_difference], [0.2, 0.2], color=TEXT, linewidth=1.6, marker="|", markersize=6)
    axes.text(
        1 + comparison.critical_difference / 2,
        0.14,
        f"critical difference {comparison.critical_difference:.2f}",
        ha="center",
        va="bottom",
        fontsize=8,
    )
    for index, (first, last) in enumerate(groups):
        y = line + 0.16 * (index + 1)
        axes.plot(
            [ranked[first][1] - 0.05, ranked[last][1] + 0.05], [y, y], color=TEXT, linewidth=2.6, solid_capstyle="butt"
        )
    for index, (label, rank) in enumerate(ranked):
        better = index < half
        y = line + bars + 0.3 + 0.2 * (index if better else len(ranked) - 1 - index)
        end = 1 - 0.04 * worst if better else worst + 0.04 * worst
        style = study.styles[label]
        axes.plot([rank, rank, end], [line, y, y], color=SOFT, linewidth=0.7)
        axes.plot(
            rank,
            line,
            marker=style.marker,
            color=style.colour,
            markersize=5.5,
            markeredgecolor=PAPER,
            markeredgewidth=0.6,
        )
        if label in study.highlighted:
            ring(axes, rank, line, zorder=4)
        name = shown_as(study, label)
        text = f"{name}  {rank:.2f}" if better else f"{rank:.2f}  {name}"
        axes.text(end, y, f" {text} ", ha="left" if better else "right", va="center", fontsize=8.5)
    difference = f"{comparison.critical_difference:.2f} at {stats.CONFIDENCE:.0%}"
    test = f"χ² = {comparison.statistic:.1f}, p = {comparison.p_value:.2g}"
    return figure, (
        f"Mean ranks over {comparison.pairs} pairs, best on the right. A bar joins methods whose differences are "
        f"not resolved by Nemenyi's test (critical difference {difference}). Friedman's test: {test}."
    )
