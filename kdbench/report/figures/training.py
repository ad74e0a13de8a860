"""The training loss and its terms by epoch, in the main stage and in those before it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter

from kdbench.report.figures.canvas import (
    NARROW,
    WIDTH,
    Numbers,
    axis_labels,
    joined,
    over_seeds,
    panels,
    set_names,
    shown_as,
)
from kdbench.report.study import Study
from kdbench.report.styles import INK, PALETTE
from kdbench.results.record import MAIN

STYLES: tuple[str, ...] = ("-", "--", ":", "-.")
LOGARITHMIC = 30.0
"""If the ratio of the highest to the lowest value is larger, the panel is logarithmic."""
TERM = "term_"


def terms(study: Study) -> tuple[Figure, str] | None:
    """Training loss and its terms in the main stage; one panel per method."""
    made = _figure(study, main=True)
    if made is None:
        return None
    return (
        made,
        "Training loss and its terms by epoch of the main stage, mean over seeds; one panel per method. The loss is "
        f"the weighted sum of the terms; the terms are drawn without weights. {_pairs(study)}",
    )


def stages(study: Study) -> tuple[Figure, str] | None:
    """Training loss and its terms in the stages before the main one; one panel per method and stage."""
    made = _figure(study, main=False)
    if made is None:
        return None
    return (
        made,
        "Training loss and its terms by epoch of the stages before the main one, mean over seeds; one panel per method "
        f"and stage. {_pairs(study)}",
    )


def _pairs(study: Study) -> str:
    titles = [study.title(pair) for pair in study.pairs]
    if len(titles) == 1:
        return ""
    if len(titles) > len(STYLES):
        return "One line per pair."
    names = ("solid", "dashed", "dotted", "dash-dotted")
    return f"Lines: {', '.join(f'{name} {title}' for name, title in zip(names, titles, strict=False))}."


def _figure(study: Study, *, main: bool) -> Figure | None:
    records = study.curves
    if "train_loss" not in records:
        return None
    keys = records[["label", "stage"]]
    positions = keys.groupby(["label", "stage"], sort=False).indices
    found = [(str(label), str(stage)) for label, stage in keys.drop_duplicates().itertuples(index=False)]
    groups = [
        (label, stage) for label in study.labels for owner, stage in found if owner == label and (stage == MAIN) == main
    ]
    if not groups:
        return None
    columns = min(4, len(groups))
    figure, drawn = panels(len(groups), columns, 2.3, width=WIDTH if columns > 2 else NARROW)
    for axes, (label, stage) in zip(drawn, groups, strict=True):
        # One panel's rows at a time: a copy of all would double the memory that a large suite takes.
        _panel(axes, study.pairs, records.iloc[positions[label, stage]])
        name = shown_as(study, label)
        axes.set_title(name if stage == MAIN else f"{name}: {stage}")
    axis_labels(drawn, columns, "epoch", "loss")
    return figure


def _panel(axes: Axes, pairs: Sequence[str], records: pd.DataFrame) -> None:
    # The terms of a method, in the order of its records.
    names = [name for name in records.columns if name.startswith(TERM) and records[name].notna().any()]
    series = {"train_loss": INK, **{name: PALETTE[index % len(PALETTE)] for index, name in enumerate(names)}}
    by_pair = {str(pair): rows for pair, rows in records[["pair", "epoch", *series]].groupby("pair", sort=False)}
    lowest, highest = np.inf, -np.inf
    for name, colour in series.items():
        by_style: dict[str, list[tuple[Numbers, Numbers]]] = {}
        for pair, mine in by_pair.items():
            curve = over_seeds(mine, name)
            finite = np.isfinite(curve.mean)
            if not finite.any():
                continue
            shown = curve.mean[finite]
            lowest, highest = min(lowest, shown.min()), max(highest, shown.max())
            style = STYLES[pairs.index(pair)] if len(pairs) <= len(STYLES) else "-"
            by_style.setdefault(style, []).append((curve.epochs[finite], shown))
        for style, lines in by_style.items():
            single = any(len(epochs) == 1 for epochs, _ in lines)
            axes.plot(
                *joined(lines), color=colour, linestyle=style, linewidth=1.6 if name == "train_loss" else 1.1,
                marker="o" if single else None, markersize=3.5,
            )  # fmt: skip
    if lowest > 0 and highest > LOGARITHMIC * lowest:
        axes.set_yscale("log")
        # Not matplotlib's default labels: those are mathematics, and parsing of mathematics is off.
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())
    axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    handles = [Line2D([], [], color=colour, linewidth=1.6) for colour in series.values()]
    titles = ["loss", *(name.removeprefix(TERM) for name in names)]
    set_names(axes.legend(handles=handles, labels=["name"] * len(handles), fontsize=7, handlelength=1.2), titles)
