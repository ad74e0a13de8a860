"""Top-1 by method."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from kdbench.report import wording
from kdbench.report.figures.canvas import (
    NARROW,
    PAPER,
    RESOLUTION_WORDS,
    RESOLUTIONS,
    SOFT,
    TEXT,
    WIDTH,
    axis_labels,
    legend,
    mark_resolution,
    panels,
    resolution_legend,
    ring,
    shown_as,
)
from kdbench.report.leaderboard import COUNTED
from kdbench.report.resolution import of_row
from kdbench.report.strip import limits
from kdbench.report.study import Study
from kdbench.report.styles import NEUTRAL


def accuracy(study: Study) -> tuple[Figure, str] | None:
    """Top-1 by method: seeds, mean and standard deviation; one panel per pair."""
    pairs = _with_results(study)
    if not pairs:
        return None
    labels = [standing.label for standing in study.overall.standings]
    columns = min(3, len(pairs))
    figure, drawn = panels(
        len(pairs),
        columns,
        0.6 + 0.2 * max(len(labels), 3),
        width=WIDTH if columns > 1 else NARROW,
        sharey=True,
        right=0.008,
    )
    for axes, pair in zip(drawn, pairs, strict=True):
        _accuracy_panel(axes, study, pair, labels)
    for axes in drawn[::columns]:
        axes.set_yticks(range(len(labels)), [shown_as(study, label) for label in labels])
    axis_labels(drawn, columns, "test top-1, %", "")
    compared = study.cells[study.cells["n"] > 0].to_dict("records")
    if marks := resolution_legend(of_row(row, study.reference.gain) for row in compared):
        legend(figure, marks)
    return figure, (
        "Test top-1. Dots: seeds; marker: mean; bar: one standard deviation. "
        f"Dashed line: mean of {study.reference.label}. Dotted line: teacher, if inside the panel. "
        f"Right of a panel: the gain over {study.reference.label}. {RESOLUTION_WORDS}"
    )


def _accuracy_panel(axes: Axes, study: Study, pair: str, labels: Sequence[str]) -> None:
    done = study.done(pair)
    cells = study.pair(pair).set_index("label")
    base = _cell(cells, study.reference.label, "top1_mean")
    low, high = limits(list(done["top1"]), [] if base is None else [base])
    teacher = study.teacher_top1(pair)
    # Include the teacher in the panel, unless that would make the differences between methods invisible.
    if teacher is not None and high < teacher <= high + 0.6 * (high - low):
        high = teacher + 0.03 * (high - low)
    axes.set_xlim(low, high)
    if base is not None:
        axes.axvline(base, color=NEUTRAL, linestyle=(0, (4, 2)), linewidth=1)
    if teacher is not None and low <= teacher <= high:
        axes.axvline(teacher, color=TEXT, linestyle=(0, (1, 1.5)), linewidth=1)
    tops = {str(label): list(rows) for label, rows in done.groupby("label")["top1"]}
    seeds: list[tuple[float, float, str]] = []
    bars: list[tuple[float, float, float, str]] = []
    for row, label in enumerate(labels):
        if label not in cells.index:
            continue
        style, cell = study.styles[label], cells.loc[label]
        if cell["n"] == 0:
            states = [s for s in COUNTED if cell[s]]
            axes.annotate(
                " and ".join(states),
                (low, row),
                xytext=(4, 0),
                textcoords="offset points",
                va="center",
                color=SOFT,
                fontsize=7,
            )
            continue
        mean = float(cell["top1_mean"])
        seeds += [(value, row, style.colour) for value in tops[label]]
        if low <= mean <= high:
            if not pd.isna(cell["top1_std"]):
                bars.append((mean - cell["top1_std"], mean + cell["top1_std"], row, style.colour))
            axes.plot(
                mean, row, color=style.colour, marker=style.marker, markersize=5.5, markeredgecolor=PAPER,
                markeredgewidth=0.6,
            )  # fmt: skip
            if label in study.highlighted:
                ring(axes, mean, row, zorder=4)
        else:
            edge, side = (low, "left") if mean < low else (high, "right")
            arrow = f" ◂ {wording.number(mean, 1)}" if side == "left" else f"{wording.number(mean, 1)} ▸ "
            axes.text(edge, row, arrow, va="center", ha=side, color=TEXT, fontsize=7.5)
        if cell["diverged"]:
            text = f"{cell['diverged']} of {cell['n'] + cell['diverged']} diverged "
            axes.text(high, row, text, va="center", ha="right", color=SOFT, fontsize=7)
    gains = {label: of_row(cells.loc[label], study.reference.gain) for label in labels if label in cells.index}
    for state in RESOLUTIONS:
        marked = [row for row, label in enumerate(labels) if gains.get(label) is state]
        if marked:
            # Beside the panel, not inside.
            where = axes.get_yaxis_transform()
            mark_resolution(axes, state, [1.015] * len(marked), marked, transform=where, clip_on=False)
    # One artist each for all rows: with many methods and pairs, drawing artists takes most of the time.
    if seeds:
        values, places, colours = zip(*seeds, strict=True)
        axes.scatter(values, places, s=11, facecolors="none", edgecolors=colours, linewidths=0.8)
    segments = [[(left, row), (right, row)] for left, right, row, _ in bars]
    axes.add_collection(LineCollection(segments, colors=[bar[3] for bar in bars], linewidths=1.4), autolim=False)
    axes.set_ylim(len(labels) - 0.4, -0.6)
    axes.grid(axis="y", linewidth=0.4)
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.set_title(study.title(pair))
    if teacher is not None:
        beyond = "" if low <= teacher <= high else (" →" if teacher > high else " ←")
        axes.set_title(
            f"teacher {wording.number(teacher)}{beyond}", loc="right", fontsize=7.5, weight="normal", color=SOFT
        )


def _with_results(study: Study) -> list[str]:
    return [pair for pair in study.pairs if len(study.done(pair))]


def _cell(cells: pd.DataFrame, label: str, name: str) -> float | None:
    value = cells[name].get(label)
    return None if value is None or pd.isna(value) else float(value)
