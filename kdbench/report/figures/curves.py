"""Test top-1 by epoch."""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from kdbench.report import wording
from kdbench.report.figures.canvas import (
    BOLD,
    FAINT,
    NARROW,
    PAPER,
    WIDTH,
    axis_labels,
    joined,
    labelled,
    legend,
    marker,
    over_seeds,
    panels,
)
from kdbench.report.strip import limits
from kdbench.report.study import Study
from kdbench.report.styles import Style
from kdbench.results.record import MAIN


def curves(study: Study) -> tuple[Figure, str] | None:
    """Test top-1 by epoch; one panel per pair."""
    # Few columns: those of all terms would be copied for each curve.
    records = study.curves[["pair", "label", "stage", "epoch", "top1"]]
    records = records[(records["stage"] == MAIN) & records["top1"].notna()]
    drawn_pairs = set(records["pair"].unique())
    pairs = [pair for pair in study.pairs if pair in drawn_pairs]
    if not pairs:
        return None
    named, others = labelled(study, set(records["label"].unique()))
    columns = min(3, len(pairs))
    figure, drawn = panels(len(pairs), columns, 3.1 if columns < 3 else 2.7, width=WIDTH if columns > 1 else NARROW)
    by_pair = dict(iter(records.groupby("pair", sort=False)))
    for axes, pair in zip(drawn, pairs, strict=True):
        mine = by_pair[pair]
        by_label = {str(label): rows for label, rows in mine.groupby("label")}
        if grey := [over_seeds(by_label[label], "top1") for label in others if label in by_label]:
            lines = joined((curve.epochs, curve.mean) for curve in grey)
            single = "o" if any(len(curve.epochs) == 1 for curve in grey) else None
            axes.plot(*lines, color=FAINT, linewidth=0.6, marker=single, markersize=2)
        for label in named:
            if label in by_label:
                own = label in study.highlighted
                _curve(axes, by_label[label], study.styles[label], BOLD if own else 1.4, zorder=4 if own else 2)
        last = int(mine["epoch"].max())
        settled = mine.loc[mine["epoch"] >= max(1, round(0.15 * last)), "top1"]
        axes.set_ylim(*limits(list(settled)))
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.set_title(study.title(pair))
    axis_labels(drawn, columns, "epoch", "test top-1, %")
    handles = [marker(study, label, linestyle="-") for label in named]
    if others:
        handles.append(Line2D([], [], color=FAINT, label="others", linewidth=0.8))
    legend(figure, handles)
    return figure, "Test top-1 by epoch of the main stage. Line: mean over seeds; band: range of seeds. " + (
        "Labelled: the baselines and the methods with the best mean ranks over all pairs; "
        f"{wording.plural(len(others), 'other')} in grey."
        if others
        else "The vertical axis is scaled to later epochs; the first epochs may be outside it."
    )


def _curve(axes: Axes, records: pd.DataFrame, style: Style, width: float, zorder: float) -> None:
    shown = over_seeds(records, "top1")
    if shown.seeds > 1:
        axes.fill_between(shown.epochs, shown.low, shown.high, color=style.colour, alpha=0.13, linewidth=0)
    last = len(shown.epochs) - 1
    gap = max(1, (last + 1) // 6)
    axes.plot(
        shown.epochs, shown.mean, color=style.colour, linewidth=width, marker=style.marker, markersize=4.5,
        markeredgecolor=PAPER, markeredgewidth=0.5, markevery=(last % gap, gap), zorder=zorder,
    )  # fmt: skip
