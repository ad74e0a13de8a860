"""Test top-1 by epoch."""

from __future__ import annotations

from collections.abc import Collection

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from kdbench.report import wording
from kdbench.report.figures.canvas import GRID, NARROW, PAPER, WIDTH, axis_labels, legend, marker, over_seeds, panels
from kdbench.report.strip import limits
from kdbench.report.study import Study
from kdbench.report.styles import Style
from kdbench.results.record import MAIN

HIGHLIGHTED = 8
"""With more methods, only the best ones and the baselines are labelled."""


def curves(study: Study) -> tuple[Figure, str] | None:
    """Test top-1 by epoch; one panel per pair."""
    records = study.curves
    records = records[(records["stage"] == MAIN) & records["top1"].notna()]
    pairs = [pair for pair in study.pairs if pair in set(records["pair"])]
    if not pairs:
        return None
    named, others = _highlighted(study, set(records["label"]))
    columns = min(3, len(pairs))
    figure, drawn = panels(len(pairs), columns, 3.1 if columns < 3 else 2.7, width=WIDTH if columns > 1 else NARROW)
    for axes, pair in zip(drawn, pairs, strict=True):
        mine = records[records["pair"] == pair]
        by_label = {str(label): rows for label, rows in mine.groupby("label")}
        for label in others:
            if label in by_label:
                _curve(axes, by_label[label], Style(GRID, ""), 0.9)
        for label in named:
            if label in by_label:
                _curve(axes, by_label[label], study.styles[label], 1.4)
        last = int(mine["epoch"].max())
        settled = mine.loc[mine["epoch"] >= max(1, round(0.15 * last)), "top1"]
        axes.set_ylim(*limits(list(settled)))
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.set_title(study.title(pair))
    axis_labels(drawn, columns, "epoch", "test top-1, %")
    handles = [marker(study, label, linestyle="-") for label in named]
    if others:
        handles.append(Line2D([], [], color=GRID, label="others", linewidth=1.8))
    legend(figure, handles)
    return figure, "Test top-1 by epoch of the main stage. Line: mean over seeds; band: range of seeds. " + (
        "Labelled: the baselines and the methods with the best mean ranks over all pairs; "
        f"{wording.plural(len(others), 'other')} in grey."
        if others
        else "The vertical axis is scaled to later epochs; the first epochs may be outside it."
    )


def _curve(axes: Axes, records: pd.DataFrame, style: Style, width: float) -> None:
    shown = over_seeds(records, "top1")
    if style.marker and shown["size"].iloc[0] > 1:
        axes.fill_between(shown.index, shown["min"], shown["max"], color=style.colour, alpha=0.13, linewidth=0)
    gap = max(1, len(shown) // 6)
    axes.plot(
        shown.index, shown["mean"], color=style.colour, linewidth=width, marker=style.marker or None, markersize=4.5,
        markeredgecolor=PAPER, markeredgewidth=0.5, markevery=((len(shown) - 1) % gap, gap),
    )  # fmt: skip


def _highlighted(study: Study, drawn: Collection[str]) -> tuple[list[str], list[str]]:
    ordered = [standing.label for standing in study.overall.standings if standing.label in drawn]
    if len(ordered) <= HIGHLIGHTED + 1:
        return ordered, []
    baselines = [baseline.label for baseline in study.baselines if baseline.label in ordered]
    best = [label for label in ordered if label not in baselines][: HIGHLIGHTED - len(baselines)]
    named = [label for label in ordered if label in {*baselines, *best}]
    return named, [label for label in ordered if label not in named]
