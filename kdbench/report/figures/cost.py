"""Gain against training time."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator
from matplotlib.transforms import ScaledTranslation

from kdbench.report import wording
from kdbench.report.figures.canvas import (
    NARROW,
    PAPER,
    RESOLUTION_WORDS,
    RESOLUTIONS,
    SOFT,
    WIDTH,
    axis_labels,
    layout,
    legend,
    mark_resolution,
    marker,
    panels,
    resolution_legend,
    ring,
    shown_as,
)
from kdbench.report.figures.labels import place_labels
from kdbench.report.resolution import Resolution, of_row
from kdbench.report.strip import limits
from kdbench.report.study import Baseline, Study
from kdbench.report.styles import NEUTRAL

NAMED = 12
"""In a panel with more points, only some get a label."""
MARK_POINTS = 7.5
"""Distance in points of the mark of a gain from the method's marker."""
CLOSE = 5.0
"""Methods at most this many percentage points below the highest are never outside a panel; nor is the Pareto front."""


def cost(study: Study) -> tuple[Figure, str] | None:
    """Gain over the baseline against training time; one panel per pair."""
    cells = study.cells[(study.cells["n"] > 0) & (study.cells["seconds"] > 0)]
    reference = study.reference
    over_reference = reference.label in set(cells["label"])
    gains = cells[reference.gain].where(cells["label"] != reference.label, 0.0)
    cells = cells.assign(height=gains if over_reference else cells["top1_mean"])
    cells = cells[cells["height"].notna()]
    pairs = [pair for pair in study.pairs if (cells["pair"] == pair).sum() > 1]
    if not pairs:
        return None
    columns = min(3, len(pairs))
    figure, drawn = panels(len(pairs), columns, 3.4 if columns < 3 else 3.0, width=WIDTH if columns > 1 else NARROW)
    longest = float(cells["seconds"].max())
    scale, unit = (3600.0, "hours") if longest >= 5400 else (60.0, "minutes") if longest >= 150 else (1.0, "seconds")
    for axes, pair in zip(drawn, pairs, strict=True):
        mine = cells[cells["pair"] == pair]
        _cost_panel(axes, study, mine, scale, _resolutions(mine, reference) if over_reference else None)
        axes.set_title(study.title(pair))
    height = f"gain over {reference.label}, points" if over_reference else "test top-1, %"
    axis_labels(drawn, columns, f"training time of one student, {unit}", height)
    shown = [s.label for s in study.overall.standings if s.label in set(cells["label"])]
    marks = resolution_legend(_resolutions(cells, reference)) if over_reference else []
    legend(figure, [*(marker(study, label) for label in shown), *marks])
    layout(figure)
    canvas = FigureCanvasAgg(figure)
    outside = []
    for axes, pair in zip(drawn, pairs, strict=True):
        mine = cells[cells["pair"] == pair]
        low, high = axes.get_ylim()
        outside += list(mine.loc[(mine["height"] < low) | (mine["height"] > high), "label"])
        # With many methods, only those on the Pareto front and the baselines get a label.
        few = {*(baseline.label for baseline in study.baselines), *_front(mine)["label"], *study.highlighted}
        wanted = set(mine["label"]) if len(mine) <= NAMED else few
        points = list(zip(mine["seconds"] / scale, mine["height"], strict=True))
        names = [shown_as(study, label) if label in wanted else "" for label in mine["label"]]
        place_labels(canvas, axes, points, names)
    hollow = f" {RESOLUTION_WORDS} Hollow: not resolved, or no interval." if over_reference else ""
    what = f"Gain over {reference.label}" if over_reference else "Test top-1"
    lost = f" Outside the range of the panel: {wording.listing(list(dict.fromkeys(outside)))}." if outside else ""
    return figure, (
        f"{what}, mean over seeds, against the wall time of training one student. "
        f"The line is the Pareto front of mean and time.{hollow}{lost}"
    )


def _front(cells: pd.DataFrame) -> pd.DataFrame:
    """The Pareto front of mean and time, by increasing time."""
    rising = cells.sort_values(["seconds", "height"], ascending=[True, False])
    return rising[rising["height"] > rising["height"].cummax().shift(fill_value=-np.inf)]


def _resolutions(cells: pd.DataFrame, reference: Baseline) -> list[Resolution | None]:
    """What is known of the gain of each row; None for the reference itself."""
    return [of_row(row, reference.gain) for row in cells.to_dict("records")]


def _cost_panel(
    axes: Axes, study: Study, cells: pd.DataFrame, scale: float, states: Sequence[Resolution | None] | None
) -> None:
    """One pair; ``states`` if heights are gains over the reference."""
    zero = states is not None
    if zero:
        axes.axhline(0, color=NEUTRAL, linestyle=(0, (4, 2)), linewidth=1)
    front = _front(cells)
    axes.plot(
        front["seconds"] / scale,
        front["height"],
        color=SOFT,
        linewidth=0.8,
        alpha=0.6,
        drawstyle="steps-post",
        zorder=1,
    )
    for cell, state in zip(cells.itertuples(), states or [None] * len(cells), strict=True):
        style = study.styles[str(cell.label)]
        # Hollow: the sign of the gain is not known.
        hollow = state in (Resolution.NOT_RESOLVED, Resolution.NO_INTERVAL)
        axes.plot(
            cell.seconds / scale, cell.height, marker=style.marker, color=style.colour, markersize=6.5,
            markerfacecolor=PAPER if hollow else style.colour, markeredgecolor=style.colour if hollow else PAPER,
            markeredgewidth=1.1 if hollow else 0.7, linestyle="none", zorder=3,
        )  # fmt: skip
        if cell.label in study.highlighted:
            ring(axes, cell.seconds / scale, cell.height, zorder=2)
    for state in RESOLUTIONS:
        marked = cells[[one is state for one in states or [None] * len(cells)]]
        if len(marked):
            shift = (-1 if state is Resolution.WORSE else 1) * MARK_POINTS / 72
            beside = axes.transData + ScaledTranslation(0, shift, axes.figure.dpi_scale_trans)
            x, y = list(marked["seconds"] / scale), list(marked["height"])
            mark_resolution(axes, state, x, y, transform=beside, zorder=4)
    heights, seconds = list(cells["height"]), list(cells["seconds"] / scale)
    # The statistics of a few close methods make an outlier of one that is far above them: of the best.
    close = cells.loc[cells["height"] >= max(heights) - CLOSE, "height"]
    axes.set_ylim(*limits(heights, [*front["height"], *close, *([0.0] if zero else [])]))
    left, right = min(seconds), max(seconds)
    if right > 4 * left:
        axes.set_xscale("log")
        axes.set_xlim(left / 1.3, right * 1.6)
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.xaxis.set_minor_locator(NullLocator())
        return
    span = max(right - left, 0.05 * right)
    axes.set_xlim(max(0.0, left - 0.2 * span), right + 0.25 * span)
    axes.xaxis.set_major_locator(MaxNLocator(5))
